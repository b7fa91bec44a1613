"""``Store``: where releases are kept, and how a text such as ``s3://bucket/prefix`` names it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.reading import open_regular, read_regular, resolve_inside, sha256_file
from onetrunk.protocol.transaction import locked, sync

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[\w.=+-]+(/[\w.=+-]+)*", re.ASCII)
_ALLOWED = "allowed are s3://BUCKET/PREFIX and file:///FOLDER"
PARTIAL = ".partial"
"""The folder of a store in a folder where what a write has not finished lies, until it is moved into its place."""
MAX_FILE_BYTES = 5 * 2**30
"""The largest file of a release, which is the largest that S3 takes in one request."""
BLOCK_BYTES = 2**20
"""Of a download."""
# The time for another writer to replace a small file.
_LOCK_WAIT_S = 60.0


class ChangedMeanwhileError(OneTrunkError):
    """An object is not as its writer has read it: somebody else has written it since."""


@dataclass(frozen=True)
class StoreUrl:
    """The place of a store.

    Attributes:
        scheme: ``s3`` or ``file``.
        bucket: The bucket; empty for a folder.
        prefix: The path in the bucket, or the folder's path without the first slash.
    """

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"

    @property
    def key(self) -> str:
        """A name for a folder of this machine that belongs to the store."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]


def parse_store(text: str) -> StoreUrl:
    """Return the place that a text names.

    Raises:
        UserError: It names none, or has a key or another option in it. The message does not repeat such a text.
    """
    scheme, separator, rest = text.partition("://")
    if scheme != "file" and any(mark in rest for mark in "@?#"):
        raise UserError(
            "the address of a store has a bucket and a prefix only: put keys into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or ~/.aws, and the endpoint into AWS_ENDPOINT_URL"
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not separator or scheme not in ("s3", "file"):
        raise UserError(f"{text}: no address of a store; {_ALLOWED}")
    if scheme == "file":
        if bucket or not prefix or ".." in PurePosixPath(prefix).parts:
            raise UserError(f"{text}: no absolute path of a folder; {_ALLOWED}")
        return StoreUrl("file", "", prefix)
    parts = prefix.split("/")
    if not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix) or "." in parts or ".." in parts:
        raise UserError(
            f"{text}: found bucket {bucket!r} and prefix {prefix!r}; a bucket has 3 to 63 lowercase letters, digits, "
            f". and -, a prefix letters, digits and _.=+- between slashes; {_ALLOWED}"
        )
    return StoreUrl("s3", bucket, prefix)


class Place(click.ParamType):  # type: ignore[type-arg] # a plain class before click 8.5
    """The type of an option that is a repository's folder, or the address of a store of releases."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | StoreUrl:
        """See `click.ParamType.convert`."""
        if isinstance(value, Path | StoreUrl):
            return value
        if "://" not in value:
            return Path(value)
        try:
            return parse_store(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class Store(ABC):
    """A store of releases. Names are paths below its prefix, such as ``releases/HASH/manifest.json``.

    An object appears whole or not at all.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self.unwanted = threading.Event()
        """Set when nobody wants any more what is being downloaded."""

    def check_wanted(self) -> None:
        """Check, between the blocks of a download, that it is wanted.

        Raises:
            OneTrunkError: It is not.
        """
        if self.unwanted.is_set():
            raise OneTrunkError(f"{self.url}: ended")

    @abstractmethod
    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """Read a small object.

        Args:
            name: The object.
            max_bytes: The largest size that is read.

        Returns:
            Its content, and a tag that changes with it; None if there is none.

        Raises:
            OneTrunkError: The store does not answer, or refuses.
            UserError: The object is too large.
        """

    @abstractmethod
    def written(self, folder: str) -> dict[str, float]:
        """Return the objects below a folder: path below that folder -> when it was written, in seconds since 1970.

        Raises:
            OneTrunkError: The store does not answer, or refuses.
        """

    @abstractmethod
    def holds(self, name: str, sha256: str) -> bool:
        """Return whether an object is known to have a content.

        Raises:
            OneTrunkError: The store does not answer, or refuses.
        """

    @abstractmethod
    def download(self, name: str, path: Path, max_bytes: int = MAX_FILE_BYTES) -> bool:
        """Copy an object into a file. What it contains is for the caller to check.

        Args:
            name: The object.
            path: The file, in a folder that exists.
            max_bytes: The largest size that is taken.

        Returns:
            Whether there is such an object.

        Raises:
            OneTrunkError: The store does not answer, or refuses; or the disk does.
            UserError: The object is too large.
        """

    @abstractmethod
    def upload(self, path: Path, name: str, sha256: str) -> None:
        """Write an object from a file.

        Args:
            path: The file.
            name: The object.
            sha256: The content's hash, which the store compares where it can.

        Raises:
            OneTrunkError: The store does not answer, refuses, or received something else.
        """

    @abstractmethod
    def copy(self, source: str, name: str) -> None:
        """Write an object with the content of another one, inside the store.

        Raises:
            OneTrunkError: The store does not answer, or refuses.
        """

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove objects. One that is not there is no error.

        Raises:
            OneTrunkError: The store does not answer, or refuses.
        """

    @abstractmethod
    def replace(self, name: str, content: bytes, tag: str | None) -> None:
        """Write a small object, provided that it is as the caller knows it.

        Args:
            name: The object.
            content: Its new content.
            tag: The tag that ``read`` gave; None if there was no such object.

        Raises:
            ChangedMeanwhileError: It is another one by now.
            OneTrunkError: The store does not answer, or refuses.
        """


class FolderStore(Store):
    """A store in a folder, such as one that several machines share."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self.folder = Path(f"/{url.prefix}")

    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """See `Store.read`."""
        try:
            content = read_regular(self.folder / name, max_bytes=max_bytes, inside=self.folder)
        except FileNotFoundError:
            return None
        return content, hashlib.sha256(content).hexdigest()

    def written(self, folder: str) -> dict[str, float]:
        """See `Store.written`."""
        root, found = self.folder / folder, {}
        for path in root.rglob("*"):
            with suppress(FileNotFoundError):  # somebody moves or removes it at this moment
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    # A link to a file of an older release has the time when that was written, and its own here.
                    found[path.relative_to(root).as_posix()] = max(status.st_mtime, status.st_ctime)
        return found

    def holds(self, name: str, sha256: str) -> bool:
        """See `Store.holds`."""
        try:
            return sha256_file(self.folder / name, inside=self.folder) == sha256
        except FileNotFoundError:
            return False

    def download(self, name: str, path: Path, max_bytes: int = MAX_FILE_BYTES) -> bool:
        """See `Store.download`."""
        try:
            with (
                open_regular(self.folder / name, max_bytes=max_bytes, inside=self.folder) as source,
                path.open("wb") as target,
            ):
                while block := source.read(BLOCK_BYTES):
                    self.check_wanted()
                    target.write(block)
        except FileNotFoundError:
            return False
        return True

    def upload(self, path: Path, name: str, sha256: str) -> None:
        """See `Store.upload`."""
        with self._written(name) as aside:
            shutil.copyfile(path, aside)
            if sha256_file(aside) != sha256:
                raise OneTrunkError(f"{path}: changed while it was copied: end what writes there, and publish again")

    def copy(self, source: str, name: str) -> None:
        """See `Store.copy`. Equal files are one file of the disk, where its file system can."""
        found = resolve_inside(self.folder, source)
        with self._written(name) as aside:
            try:
                os.link(found, aside)
            except OSError:
                shutil.copyfile(found, aside)

    def remove(self, names: Iterable[str]) -> None:
        """See `Store.remove`. Folders that become empty go as well."""
        for name in names:
            path = self.folder / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OneTrunkError(f"{path}: cannot be removed: {error.strerror}") from error
            with suppress(OSError):  # something else is in it
                for folder in list(path.relative_to(self.folder).parents)[:-1]:
                    (self.folder / folder).rmdir()

    def replace(self, name: str, content: bytes, tag: str | None) -> None:
        """See `Store.replace`."""
        with locked(self.folder, wait_s=_LOCK_WAIT_S):
            found = self.read(name, len(content) + 2**20)
            if (found[1] if found else None) != tag:
                raise ChangedMeanwhileError(f"{self.url}: {name} was written by somebody else meanwhile")
            with self._written(name) as aside:
                aside.write_bytes(content)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """Yield a path to write to, and move what is there into its place."""
        target = self.folder / name
        # By chance: of writers in containers, or on several machines, two may have one process id.
        aside = self.folder / PARTIAL / secrets.token_hex(16)
        try:
            for folder in (target.parent, aside.parent):
                folder.mkdir(parents=True, exist_ok=True)
            yield aside
            sync(aside)
            os.replace(aside, target)
            # A pointer must not outlive, in a power cut, the entries of the files that it is about.
            sync(target.parent)
        except OSError as error:
            raise OneTrunkError(f"{target}: cannot be written: {error.strerror}") from error
        finally:
            with suppress(OSError):
                aside.unlink()


def open_store(url: StoreUrl) -> Store:
    """Return the store at a place.

    Raises:
        UserError: The package for it is not installed, or its configuration cannot be used.
    """
    if url.scheme == "file":
        return FolderStore(url)
    # Imported here: whoever keeps repositories in folders needs no client of an object store.
    from onetrunk.releases.s3 import S3Store

    return S3Store(url)
