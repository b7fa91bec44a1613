"""Writing into a repository so that a crash at any point leaves the old one or the new one.

All new files are written aside first, below ``.staging/`` of the repository. Then one file, ``commit.json``, is put
there: from then on the new repository is decided, and all that is left are moves within one file system, in an order
that keeps whatever is loaded in between whole: version folders, then labels and configs, ensembles, manifest, and at
last what has gone. Before that file is there, nothing of the repository has been touched. After it,
``finish_publication`` can be called any number of times.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import COMMIT, STAGING

_LOCK_POLL_S = 0.1


@contextmanager
def locked(repository: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the repository for one writer.

    Args:
        repository: its folder; made where it is not there.
        wait_s: seconds to wait for another writer to end.

    Raises:
        UserError: another one holds it, or it cannot be made or opened.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{repository}: cannot be made or opened: {error.strerror}") from error
    try:
        _lock(descriptor, repository, time.monotonic() + wait_s)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, repository: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise UserError(
                    f"{repository}: another build-repo or deploy-head is writing it: wait for it to end"
                ) from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


class Publication:
    """New files for a repository, collected aside until they are all there and checked.

    Use as a context manager: leaving it without ``commit`` drops everything.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.staging = repository / STAGING
        self._moves: list[str] = []

    def __enter__(self) -> Publication:
        shutil.rmtree(self.staging, ignore_errors=True)
        try:
            (self.staging / "files").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.repository}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if not is_decided(self.repository):
            shutil.rmtree(self.staging, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where to write a file now that shall be ``name`` in the repository.

        Files move in the order of these calls.
        """
        target = self.staging / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._moves.append(name)
        return target

    def current(self, name: str) -> Path:
        """Where a file of the repository to be is now: aside if it is new, else in the repository."""
        return self.staging / "files" / name if name in self._moves else self.repository / name

    def write(self, name: str, content: str) -> None:
        """Adds a small text file."""
        self.path(name).write_text(content, encoding="utf-8")

    def commit(self, removed: Sequence[str], *, loadable: bool = False) -> None:
        """Makes the new files and removals the repository's.

        Args:
            removed: folders that have gone, below the repository.
            loadable: whether Triton can load the repository after each of the moves, so that a server may start
                although a crash came between them.

        Raises:
            OneTrunkError: the disk is full or the like; before the decision the old repository is still whole, after it
                the next call of finish_publication completes the new one.
        """
        try:
            for name in self._moves:
                _sync(self.staging / "files" / name)
            _write_commit(self.staging / COMMIT, {"moves": self._moves, "removed": list(removed), "loadable": loadable})
            finish_publication(self.repository)
        except OSError as error:
            raise OneTrunkError(
                f"{self.repository}: {error.strerror} while publishing: mend that and give the same command again"
            ) from error


def is_decided(repository: Path) -> bool:
    """Whether a publication was decided and is not moved in whole."""
    return (repository / STAGING / COMMIT).exists()


def finish_publication(repository: Path) -> bool:
    """Completes a publication that was cut off after its decision; clears away one that was cut off before.

    Returns:
        Whether there was one to complete.
    """
    staging = repository / STAGING
    commit = staging / COMMIT
    if not commit.exists():
        shutil.rmtree(staging, ignore_errors=True)
        return False
    decided = json.loads(commit.read_bytes())
    folders = {repository}
    for name in decided["moves"]:
        source, target = staging / "files" / name, repository / name
        folders |= {target.parent, target.parent.parent}
        # Moved already where an earlier try was cut off after it.
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for name in decided["removed"]:
        shutil.rmtree(repository / name, ignore_errors=True)
    # A power cut must not forget a move and remember that all were made.
    for folder in sorted(folders):
        _sync(folder)
    # The decision goes first: without it what is left below .staging is only waste.
    commit.unlink()
    shutil.rmtree(staging)
    return True


def finish_earlier(repository: Path) -> bool:
    """The same before other work. Raises OneTrunkError where the disk is full or the like."""
    try:
        return finish_publication(repository)
    except OSError as error:
        raise OneTrunkError(f"{repository}: {error.strerror} while completing an earlier publication") from error


def _write_commit(path: Path, decided: dict[str, list[str] | bool]) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(decided))
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
