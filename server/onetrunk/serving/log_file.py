"""The files to which Triton and the front log."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.errors import ServerError, UserError
from onetrunk.serving.log import read_since, tail


@dataclass(frozen=True)
class LogPart:
    """What one Triton has logged.

    Attributes:
        path: The file.
        offset: Where its part begins, in bytes.
    """

    path: Path
    offset: int

    def text(self) -> str:
        """Return all of it."""
        return read_since(self.path, self.offset)

    def tail(self) -> str:
        """Return the end of it; nothing if the file is gone."""
        return tail(self.path, self.offset)


class LogFile:
    """Triton's log, and the front's beside it. Without a name it is a temporary file, kept only after a failure."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._is_temporary = path is None
        self._path = Path(path).absolute() if path is not None else None
        self._latest: LogPart | None = None

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            ServerError: It was not opened.
        """
        if self._path is None:
            raise ServerError("the server was not started, and has no log")
        return self._path

    @property
    def front_path(self) -> Path:
        """The front's file.

        Raises:
            ServerError: It was not opened.
        """
        return self.path.with_name(f"{self.path.name}.front")

    def open(self) -> None:
        """Make the files, if they do not exist.

        Raises:
            UserError: One cannot be written.
        """
        if self._path is None:
            try:
                handle, name = tempfile.mkstemp(prefix="onetrunk-", suffix=".log")
            except OSError as error:
                raise UserError(f"there is no room for a log: {error.strerror}; make some, or give --log") from None
            os.close(handle)
            self._path = Path(name)
            # Nobody else may have made it, as a link to somewhere, nor read it.
            os.close(os.open(self.front_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        for path in (self.path, self.front_path):
            try:
                path.open("ab").close()
            except OSError as error:
                raise UserError(f"the log {path} cannot be written: {error.strerror}") from None

    def since_now(self) -> LogPart:
        """Return the part that begins here, for a Triton that is about to start."""
        # Somebody may have removed the file.
        size = self.path.stat().st_size if self.path.exists() else 0
        self._latest = LogPart(self.path, size)
        return self._latest

    def latest(self) -> str:
        """Return what the Triton that was started last has logged."""
        return self._latest.text() if self._latest is not None else ""

    def leave(self, *, failed: bool) -> None:
        """Remove temporary files. After a failure those are kept that have something to say."""
        if not self._is_temporary or self._path is None:
            return
        for path in (self.path, self.front_path):
            if not failed or (path.exists() and not path.stat().st_size):
                path.unlink(missing_ok=True)
