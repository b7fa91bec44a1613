"""``publish`` writes a repository into a store as a release, and ``pull`` brings a repository to a store's release."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.integrity import compare
from onetrunk.protocol.manifest import MAX_BYTES, Manifest, Sha256, read_manifest
from onetrunk.protocol.names import CONFIG_FILE, DEPLOYMENTS_LOG, ENSEMBLES, MANIFEST, SIGNATURE, is_candidate_ensemble
from onetrunk.protocol.reading import parse_json, read_regular, sha256_file
from onetrunk.protocol.signature import Verifier
from onetrunk.protocol.transaction import Transaction, locked, recover
from onetrunk.releases.store import ChangedMeanwhileError, FolderStore, Store

POINTER = "current.json"
_MAX_POINTER_BYTES = 4096
_MAX_LOG_BYTES = 64 * 2**20
_MAX_SIGNATURE_BYTES = 4096
# Requests wait for the network, not for a core.
_THREADS = 8

T = TypeVar("T")


class Pointer(BaseModel):
    """``current.json`` of a store.

    Attributes:
        release: The hash of the release to serve.
        log: The hash of the log of deployments that led to it; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: Sha256
    log: Sha256 | None = None


@dataclass(frozen=True)
class Found:
    """What a store's pointer said when it was read.

    Attributes:
        pointer: The pointer; None if nothing has been published yet.
        tag: What the pointer is compared by before it is replaced; None if there is none.
    """

    pointer: Pointer | None = None
    tag: str | None = None


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Attributes:
        release: The hash of the release.
        uploaded: The files that were sent.
        copied: The number of files that the store copied from the release before.
        bytes_sent: The size of the files that were sent.
    """

    release: str
    uploaded: tuple[str, ...] = ()
    copied: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        release: The hash of the release.
        written: The files that were fetched; the others were there already.
        removed: The folders that were removed.
        bytes_received: The size of the files that were fetched.
    """

    release: str
    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    bytes_received: int = 0


def read_pointer(store: Store) -> Found:
    """Return what a store's pointer says.

    Raises:
        UserError: It is broken.
        OneTrunkError: The store does not answer, or refuses.
    """
    found = store.read(POINTER, _MAX_POINTER_BYTES)
    if found is None:
        return Found()
    content, tag = found
    try:
        return Found(Pointer.model_validate(parse_json(content)), tag)
    except (ValidationError, ValueError):
        raise UserError(
            f"{store.url}: {POINTER} is broken: write the hash of a release into it again, as "
            '{"release": "...", "log": null}'
        ) from None


def release_folder(store: FolderStore) -> Path:
    """Return the folder of a store's release, to be served where it is.

    Raises:
        UserError: Nothing has been published, or the pointer is broken.
    """
    return store.folder / f"releases/{required_pointer(store, read_pointer(store)).release}"


def publish(repository: Path, store: Store, before: Found | None = None) -> Published:
    """Write a repository into a store, and make it the release to serve.

    The files of the release are written first, its manifest after them, and the pointer last. What the release before
    has is copied inside the store. An interrupted call leaves the old release, and the next one goes on where it ended.

    Args:
        repository: The repository's folder.
        store: The store.
        before: The pointer on which the repository is based; None takes what the store says now.

    Raises:
        UserError: There is no repository, or a file is not as its manifest says.
        ChangedMeanwhileError: Somebody else has published since.
        OneTrunkError: The store does not answer, or refuses.
    """
    before = read_pointer(store) if before is None else before
    with locked(repository):
        recover(repository)
        manifest, content = _manifest(repository)
        release = hashlib.sha256(content).hexdigest()
        log = _log_hash(repository)
        pointer = Pointer(release=release, log=log)
        folder = f"releases/{release}"
        if before.pointer == pointer:
            _send_signature(store, folder, repository)
            return Published(release)
        files = _files(manifest)
        if faults := compare(repository, {file: {digest} for file, digest in files.items()}):
            file, fault = next(iter(faults.items()))
            raise UserError(f"{repository}: {file} {fault}: nothing was published; run build-repo again")
        old = {} if before.pointer is None else _published_files(store, before.pointer.release)
        there = store.written(folder).keys()

        def write(file: str) -> tuple[str, int]:
            """Write one file; return how, and how many bytes were sent."""
            name, digest = f"{folder}/{file}", files[file]
            if file in there and store.holds(name, digest):
                return "kept", 0
            if before.pointer is not None and old.get(file) == digest:
                source = f"releases/{before.pointer.release}/{file}"
                if store.holds(source, digest):
                    store.copy(source, name)
                    return "copied", 0
            store.upload(repository / file, name, digest)
            return "sent", (repository / file).stat().st_size

        # Of a release that is complete, no file is touched: servers may be reading it.
        done = {} if {MANIFEST, *files} <= there else _each(store, write, files)
        _send_signature(store, folder, repository)
        # Its time is when it was published last: whoever removes old releases goes by that.
        store.upload(repository / MANIFEST, f"{folder}/{MANIFEST}", release)
        if log is not None:
            store.upload(repository / DEPLOYMENTS_LOG, f"logs/{log}.jsonl", log)
        if missing := files.keys() - store.written(folder).keys():
            raise OneTrunkError(
                f"{store.url}: {folder}/{min(missing)} was removed meanwhile: nothing was published; give the same "
                "command again"
            )
    try:
        store.replace(POINTER, pointer.model_dump_json().encode(), before.tag)
    except ChangedMeanwhileError as error:
        raise ChangedMeanwhileError(
            f"{error}: nothing was published, and what they have published is served; give the same command again"
        ) from None
    return Published(
        release,
        tuple(sorted(file for file, (how, _) in done.items() if how == "sent")),
        sum(how == "copied" for how, _ in done.values()),
        sum(size for _, size in done.values()),
    )


def pull(store: Store, repository: Path, *, pointer: Pointer | None = None, verifier: Verifier | None = None) -> Pulled:
    """Make a folder equal to a store's release: fetch what differs, check all of it, and move it in as a build does.

    Whatever was only in the folder, such as heads that were deployed there, is gone after it. The lines of the log are
    those of the store.

    Args:
        store: The store.
        repository: The folder, which is created if it does not exist.
        pointer: The release, and the log that goes with it; None for what the store's pointer says.
        verifier: The key by which the release's manifest must be signed; None for no signature.

    Raises:
        UserError: There is no such release, or a file of it is not as its manifest says. The folder stays as it was.
        OneTrunkError: The store does not answer, or the disk is full.
    """
    pointer = required_pointer(store, read_pointer(store)) if pointer is None else pointer
    folder = f"releases/{pointer.release}"
    with locked(repository):
        recover(repository)
        with Transaction(repository) as transaction, tempfile.TemporaryDirectory(dir=transaction.staging) as aside:
            content, manifest = _fetch_manifest(store, pointer.release, Path(aside), verifier)
            files = _files(manifest)
            old = read_manifest(repository)
            faults = compare(repository, {file: {digest} for file, digest in files.items()})
            targets = {file: transaction.path(file) for file in sorted(faults, key=_turn)}

            def fetch(file: str) -> int:
                """Fetch one file, and return its size."""
                if not store.download(f"{folder}/{file}", targets[file]):
                    raise UserError(
                        f"{store.url}: {folder}/{file} is missing; nothing was changed here: write the hash of another "
                        f"release into {POINTER}, or build into another prefix"
                    )
                if sha256_file(targets[file]) != files[file]:
                    raise UserError(
                        f"{store.url}: {folder}/{file} is not as the manifest says; nothing was changed here: write "
                        f"the hash of another release into {POINTER}, or build into another prefix"
                    )
                return targets[file].stat().st_size

            received = _each(store, fetch, targets)
            removed = _removed(old, manifest)
            written = [*targets, *_stage_rest(store, pointer, transaction, content, Path(aside))]
            signed = (Path(aside) / SIGNATURE).exists()
            if written or removed:
                transaction.commit(removed)
        if not signed:
            (repository / SIGNATURE).unlink(missing_ok=True)  # that of another manifest
    return Pulled(pointer.release, tuple(written), tuple(removed), sum(received.values()))


def _send_signature(store: Store, folder: str, repository: Path) -> None:
    """Write the manifest's signature, if there is one that the release does not have yet."""
    if (repository / SIGNATURE).exists():
        digest = sha256_file(repository / SIGNATURE, inside=repository)
        if not store.holds(f"{folder}/{SIGNATURE}", digest):
            store.upload(repository / SIGNATURE, f"{folder}/{SIGNATURE}", digest)


def _stage_rest(store: Store, pointer: Pointer, transaction: Transaction, content: bytes, aside: Path) -> list[str]:
    """Stage the log, the manifest and its signature where they differ, and return their names."""
    wanted: dict[str, bytes] = {}
    if pointer.log is not None:
        found = store.read(f"logs/{pointer.log}.jsonl", _MAX_LOG_BYTES)
        if found is None or hashlib.sha256(found[0]).hexdigest() != pointer.log:
            raise UserError(
                f"{store.url}: logs/{pointer.log}.jsonl is missing or was changed; nothing was changed here"
            )
        wanted[DEPLOYMENTS_LOG] = found[0]
    wanted[MANIFEST] = content
    if (aside / SIGNATURE).exists():
        wanted[SIGNATURE] = (aside / SIGNATURE).read_bytes()
    staged = []
    for name, value in wanted.items():
        path = transaction.repository / name
        if not path.exists() or path.read_bytes() != value:
            transaction.path(name).write_bytes(value)
            staged.append(name)
    return staged


def _manifest(repository: Path) -> tuple[Manifest, bytes]:
    manifest = read_manifest(repository)
    if manifest is None:
        raise UserError(f"{repository}: there is no {MANIFEST}, and so nothing to publish: run build-repo first")
    return manifest, read_regular(repository / MANIFEST, max_bytes=MAX_BYTES, inside=repository)


def _fetch_manifest(store: Store, release: str, aside: Path, verifier: Verifier | None) -> tuple[bytes, Manifest]:
    """Return the manifest of a release, whose hash and signature have been checked."""
    folder = f"releases/{release}"
    if not store.download(f"{folder}/{MANIFEST}", aside / MANIFEST, MAX_BYTES):
        raise UserError(f"{store.url}: there is no release {release}: name one that was published")
    store.download(f"{folder}/{SIGNATURE}", aside / SIGNATURE, _MAX_SIGNATURE_BYTES)
    content = (aside / MANIFEST).read_bytes()
    if hashlib.sha256(content).hexdigest() != release:
        raise UserError(
            f"{store.url}: the manifest of release {release[:12]}... was changed since it was published; nothing was "
            f"changed here: write the hash of another release into {POINTER}, or build into another prefix"
        )

    def check(content: bytes) -> None:
        if verifier is not None:
            verifier.check(aside, content)

    manifest = read_manifest(aside, check)
    assert manifest is not None  # it has just been read
    return content, manifest


def _published_files(store: Store, release: str) -> dict[str, str]:
    """Return the files of an earlier release, of which equal ones are copied; none if it cannot be read."""
    with tempfile.TemporaryDirectory() as aside:
        try:
            return _files(_fetch_manifest(store, release, Path(aside), None)[1])
        except UserError:
            return {}


def required_pointer(store: Store, found: Found) -> Pointer:
    """Return the pointer that was found.

    Raises:
        UserError: Nothing has been published, or it is the folder of a repository.
    """
    if found.pointer is None and isinstance(store, FolderStore) and (store.folder / MANIFEST).is_file():
        raise UserError(
            f"{store.url}: this is a repository, not a store of releases: serve-repo and deploy-head --repository "
            f"take it as {store.folder}"
        )
    if found.pointer is None:
        raise UserError(f"{store.url}: nothing has been published there: build-repo --tasks all --output {store.url}")
    return found.pointer


def _files(manifest: Manifest) -> dict[str, str]:
    """Path below the repository -> SHA-256, for all files of all models."""
    return {file: digest for entry in manifest.models.values() for file, digest in entry.all_files.items()}


def _removed(old: Manifest | None, new: Manifest) -> list[str]:
    """Return the folders of models and versions that only the old manifest has."""
    removed = []
    for name, entry in sorted((old.models if old else {}).items()):
        if name not in new.models:
            removed.append(name)
        else:
            removed += [f"{name}/{number}" for number in sorted(set(entry.versions) - set(new.models[name].versions))]
    return removed


def _turn(file: str) -> tuple[int, bool, str]:
    """Return the turn of a file, so that what a server loads in between is whole: versions, configs, ensembles."""
    model, _, rest = file.partition("/")
    is_config = rest == CONFIG_FILE
    if model in ENSEMBLES or is_candidate_ensemble(model):
        return 2, is_config, file
    return (0 if "/" in rest else 1), is_config, file


def _log_hash(repository: Path) -> str | None:
    path = repository / DEPLOYMENTS_LOG
    if not path.exists():
        return None
    if os.stat(path).st_size > _MAX_LOG_BYTES:
        raise OneTrunkError(f"{path}: larger than {_MAX_LOG_BYTES:,} bytes: move it away, and publish again")
    return sha256_file(path, inside=repository)


def _each(store: Store, work: Callable[[str], T], files: Iterable[str]) -> dict[str, T]:
    """Do something with each of some files, several at a time; the first failure, or Ctrl-C, ends it."""
    files = list(files)
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            futures = [pool.submit(work, file) for file in files]
            try:
                return {file: future.result() for file, future in zip(files, futures, strict=True)}
            except BaseException:
                store.unwanted.set()
                for future in futures:
                    future.cancel()
                raise
    finally:
        store.unwanted.clear()
