"""Whether the files of a repository are those that the manifest lists: the check before anything is served."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from onetrunk.protocol.commit import read_commit
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Manifest, ModelEntry, read_manifest
from onetrunk.protocol.names import COMMIT, MANIFEST, STAGING
from onetrunk.protocol.reading import resolve_inside, sha256_file
from onetrunk.protocol.signature import Verifier

# Hashing releases Python's lock, so threads use all cores; beyond these the disk is what is waited for.
_MOST_THREADS = 8
# Triton's Python writes byte code there, and reads it in place of the source if it bears the source's date and size.
_BYTE_CODE = "__pycache__"


def check_files(
    repository: Path, models: Collection[str], verifier: Verifier | None = None, *, alone: bool = True
) -> None:
    """Check that everything that a server loads is as a build or a deployment wrote it.

    That is, of each model that is loaded: the versions that are loaded, its config and labels, and that there is
    nothing else beside these, since a model's folder may hold code. A repository without a manifest, which nobody here
    wrote, passes. In one whose deployment was interrupted between two moves, files may be as before or as after it.

    Args:
        repository: The repository's folder.
        models: The models that the ensembles name, and the ensembles. A folder that none of them names is not looked
            at, as a server does not load it.
        alone: Whether what lies beside the files of a loaded model is refused.
        verifier: The key by which the manifest must be signed; None for no signature. With a key, a repository without
            a manifest is refused.

    Raises:
        UserError: The manifest is not signed by the key. Or a file differs, is missing, or is not in the manifest; the
            message names the first one and what to do.
    """
    while True:
        before = _stamp(repository)
        try:
            return _check_once(repository, models, verifier, alone)
        except UserError:
            # A deployment may have moved files between two looks.
            if _stamp(repository) == before:
                raise


def _stamp(repository: Path) -> tuple[int | None, bool]:
    """Return what changes with every transaction: the manifest's time, and whether there is a decision to carry out."""
    try:
        return (repository / MANIFEST).stat().st_mtime_ns, (repository / STAGING / COMMIT).exists()
    except OSError:
        return None, False


def _check_once(repository: Path, models: Collection[str], verifier: Verifier | None, alone: bool) -> None:
    manifests = _manifests(repository, verifier)
    if not manifests:
        if verifier is not None:
            raise UserError(f"{repository}: there is no manifest, and so no signature of it: build it with --sign")
        return
    expected: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, entry in manifest.models.items():
            if entry.loaded or name in models:
                for file, digest in _loaded_files(entry).items():
                    expected.setdefault(file, set()).add(digest)
    # Before the interrupted deployment's last move, the first manifest is the old one, of which nothing is gone yet.
    required = {file for entry in manifests[0].models.values() if entry.loaded for file in _loaded_files(entry)}
    present = {file: digests for file, digests in expected.items() if file in required or (repository / file).exists()}
    faults = [f"{file} {fault}" for file, fault in compare(repository, present).items()]
    loaded = {name for manifest in manifests for name, entry in manifest.models.items() if entry.loaded}
    faults += [f"{name}/ is not in the manifest" for name in sorted(set(models) - loaded)]
    if faults:
        raise UserError(
            f"{repository}: {_first(faults)}: run build-repo again, which puts it right; serve-repo --no-verify serves "
            "it as it is"
        )
    folders = sorted(loaded & _folders(repository)) if alone else []
    extra = [file for name in folders for file in _extra(repository, name, expected)]
    if extra:
        raise UserError(
            f"{repository}: {_first([f'{file} is not in the manifest' for file in extra])}: remove it; serve-repo "
            "--no-verify serves it as it is"
        )


def remove_byte_code(repository: Path, models: Collection[str]) -> bool:
    """Remove what another server cached of models that are code: it may be of other code than what is beside it.

    What cannot be removed, as on a file system that is mounted for reading, is left for ``check_files`` to refuse.

    Args:
        repository: The repository's folder.
        models: The models that a server loads.

    Returns:
        Whether something was removed.

    Raises:
        UserError: By a link, a model's folder lies outside of the repository.
    """
    removed = False
    for model in sorted(models):
        for folder in (*repository.glob(f"{model}/{_BYTE_CODE}"), *repository.glob(f"{model}/*/{_BYTE_CODE}")):
            shutil.rmtree(resolve_inside(repository, folder), ignore_errors=True)
            removed |= not folder.exists()
    return removed


def compare(repository: Path, expected: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Compare files with their hashes, on all cores.

    Args:
        repository: The repository's folder.
        expected: Path below the repository -> the SHA-256 digests that it may have.

    Returns:
        Path -> what is wrong with the file, in the order of the paths; files that are right are left out.
    """

    def fault(file: str) -> str | None:
        try:
            found = sha256_file(repository / file, inside=repository)
        except FileNotFoundError:
            return "is missing"
        except UserError as error:
            return f"cannot be read ({error})"
        return None if found in expected[file] else "is not as it was written"

    # The largest first, so that no core is left with one of them at the end.
    files = sorted(expected, key=lambda file: (-_size(repository / file), file))
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        faults = dict(zip(files, pool.map(fault, files), strict=True))
    return {file: why for file, why in sorted(faults.items()) if why is not None}


def _manifests(repository: Path, verifier: Verifier | None) -> list[Manifest]:
    """Return the manifest, and that of an interrupted deployment if it is still staged."""

    def check(content: bytes) -> None:
        if verifier is not None:
            verifier.check(repository, content)

    found = [read_manifest(repository, check)]
    if read_commit(repository) is not None and (repository / STAGING / "files" / MANIFEST).exists():
        found.append(read_manifest(repository / STAGING / "files", check))
    return [manifest for manifest in found if manifest is not None]


def _loaded_files(entry: ModelEntry) -> dict[str, str]:
    versions = [entry.versions[number].files for number in entry.loaded if number in entry.versions]
    return {**{file: digest for files in versions for file, digest in files.items()}, **entry.files}


def _extra(repository: Path, model: str, expected: Collection[str]) -> Iterator[str]:
    """Yield what lies in a model's folder and is not expected. A version that is not loaded is left out."""
    known = {f"{model}/{file.split('/')[1]}" for file in expected if file.startswith(f"{model}/") and "/" in file}
    for path in sorted((repository / model).iterdir()):
        name = f"{model}/{path.name}"
        # Labels of a task that was removed stay with the ensembles; no config names them.
        if path.name.startswith(".") or fnmatch(path.name, "labels_*.txt") or name in expected:
            continue
        if name in known:
            yield from _extra_below(repository, path, expected)
        elif not path.name.isdecimal():
            yield name


def _extra_below(repository: Path, folder: Path, expected: Collection[str]) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(repository).as_posix()
        if name not in expected and not path.name.startswith("."):
            yield name


def _folders(repository: Path) -> set[str]:
    return {path.name for path in repository.iterdir() if path.is_dir()}


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _first(faults: list[str]) -> str:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0]}{more}"
