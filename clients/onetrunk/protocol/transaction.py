"""``Transaction``: the one way to change a repository, so that a crash at any point leaves the old one or the new one.

All new files are first staged below ``.staging/`` of the repository. Then one file, ``commit.json``, is written there:
from then on the new repository is decided, and only moves within one file system remain, in an order that keeps what a
server may load in between whole: version folders, then labels and configs, ensembles, the manifest, and finally what is
removed. Before that file exists, nothing of the repository has been touched. After it exists, ``finish_transaction``
may be called any number of times.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from onetrunk.protocol.commit import Commit, read_commit
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import COMMIT, LOCK, STAGING
from onetrunk.protocol.reading import resolve_inside

if TYPE_CHECKING:
    from typing_extensions import Self

_LOCK_POLL_S = 0.1


@contextmanager
def locked(repository: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a repository for one writer, also against writers on other machines that share the folder by NFS 4.

    Args:
        repository: The repository's folder, or a store's. It is created if it does not exist.
        wait_s: The seconds to wait for another writer to end.

    Raises:
        UserError: Another writer holds the repository, or its folder cannot be created or opened.
    """
    path = repository / LOCK
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = _hold(path, time.monotonic() + wait_s)
    except OSError as error:
        raise UserError(f"{repository}: cannot be created or written: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # while it is held: whoever waits for it finds that it is gone, and makes another
        os.close(descriptor)


def _hold(path: Path, until: float) -> int:
    """Return a lock's file, open and held. It is there while somebody holds it, and after a writer that was killed.

    The lock of the folder itself would not do: over NFS, that holds for one machine only, and a lock that excludes
    others takes a file that is open for writing.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # its holder has let go, and removed it
            pass
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise UserError(
                    f"{path.parent}: another build-repo or deploy-head is writing it: wait for it to end"
                ) from None
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class Transaction:
    """A change of a repository: stage its files, check them, then commit.

    It is a context manager. Leaving it without ``commit`` discards everything that was staged. An ``OSError`` inside it
    becomes a ``OneTrunkError``.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.staging = repository / STAGING
        self._moves: list[str] = []

    def __enter__(self) -> Self:
        if self.staging.is_symlink():
            raise UserError(f"{self.staging}: found a link, allowed is a folder: remove the link")
        shutil.rmtree(self.staging, ignore_errors=True)
        try:
            (self.staging / "files").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.repository}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not is_decided(self.repository):
            shutil.rmtree(self.staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise OneTrunkError(f"{self.repository}: {error.strerror} while writing; nothing was published") from error

    def path(self, name: str) -> Path:
        """Return where to write a file that is to become ``name`` in the repository.

        Files are moved in the order of these calls.

        Raises:
            UserError: By a link in the repository, the file would lie outside of it.
        """
        resolve_inside(self.repository, name)
        target = self.staging / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._moves.append(name)
        return target

    def current(self, name: str) -> Path:
        """Return where a file of the repository to be is now: staged if it is new, else in the repository."""
        return self.staging / "files" / name if name in self._moves else self.repository / name

    def write(self, name: str, content: str) -> None:
        """Stage a small text file."""
        self.path(name).write_text(content, encoding="utf-8")

    def commit(self, removed: Sequence[str] = (), *, loadable: bool = False) -> None:
        """Make the staged files and the removals the repository's.

        Args:
            removed: Folders to remove, below the repository.
            loadable: Whether Triton can load the repository after each single move, so that a server may start even
                though a crash came between two moves.

        Raises:
            OneTrunkError: The disk is full or cannot be written. Before the decision, the old repository is whole;
                after it, the next call of ``finish_transaction`` completes the new one.
        """
        try:
            folders = {self.staging}
            for name in self._moves:
                sync(self.staging / "files" / name)
                folders |= {self.staging / "files" / parent for parent in PurePath(name).parents}
            for folder in sorted(folders):
                sync(folder)
            decided = Commit(moves=tuple(self._moves), removed=tuple(removed), loadable=loadable)
            _write_commit(self.staging / COMMIT, decided)
            finish_transaction(self.repository)
        except OSError as error:
            raise OneTrunkError(
                f"{self.repository}: {error.strerror} while committing: fix that and run the same command again"
            ) from error


def is_decided(repository: Path) -> bool:
    """Return whether a transaction was decided and its moves are not complete."""
    return (repository / STAGING / COMMIT).exists()


def recover(repository: Path) -> bool:
    """Complete or clear away what an interrupted transaction left, before other work begins.

    Returns:
        Whether there was a decided transaction to complete.

    Raises:
        UserError: What was decided is broken, or is about something outside of the repository.
        OneTrunkError: The disk is full or cannot be written.
    """
    try:
        return finish_transaction(repository)
    except OSError as error:
        raise OneTrunkError(f"{repository}: {error.strerror} while completing an earlier transaction") from error


def finish_transaction(repository: Path) -> bool:
    """Complete a transaction that was cut off after its decision; clear away one that was cut off before.

    Nothing is moved or removed unless all of it lies inside the repository.

    Returns:
        Whether there was one to complete.

    Raises:
        UserError: What was decided is broken, or is about something outside of the repository.
    """
    staging = repository / STAGING
    decided = read_commit(repository)
    if decided is None:
        shutil.rmtree(staging, ignore_errors=True)
        return False
    folders = {repository}
    for name in decided.moves:
        source, target = staging / "files" / name, repository / name
        # Those inside the repository: what lies above it may be somebody else's, who lets nobody read it.
        folders |= {repository / parent for parent in PurePath(name).parents}
        # An earlier attempt may have moved it before it was cut off.
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for name in decided.removed:
        shutil.rmtree(repository / name, ignore_errors=True)
    # A power cut must not lose a move and keep the record that all were made.
    for folder in sorted(folders):
        sync(folder)
    # The decision goes first: without it, whatever is left below .staging is garbage.
    (staging / COMMIT).unlink()
    shutil.rmtree(staging)
    return True


def _write_commit(path: Path, decided: Commit) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(decided.model_dump_json(), encoding="utf-8")
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
