"""What each worker is doing just now, as small files that whoever shows a table reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from onetrunk.progress import ProgressCallback

_SECONDS_BETWEEN = 0.5


@dataclass(frozen=True)
class Status:
    """One worker's state.

    Attributes:
        unit: the piece of work.
        what: the step of it.
        done: how much of the step is done.
        total: how much there is.
        step_seconds: how long this step has been running.
        seconds: how long the piece of work has been running.
    """

    unit: str
    what: str
    done: int
    total: int
    step_seconds: float
    seconds: float

    @property
    def left_seconds(self) -> float | None:
        """What the step will still take at its speed so far; None where that cannot be told yet."""
        return self.step_seconds * (self.total - self.done) / self.done if self.done else None


class StatusBoard:
    """A folder with a file a working process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def reporting(self, unit: str) -> Iterator[ProgressCallback]:
        """Within it, the progress that it gives is put on the board, now and then."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}.json"
        began = step_began = time.monotonic()
        step, last = "", 0.0

        def report(what: str, done: int, total: int) -> None:
            nonlocal step, step_began, last
            now = time.monotonic()
            if what != step:
                step, step_began = what, now
            elif now - last < _SECONDS_BETWEEN:
                return
            last = now
            aside = path.with_suffix(".part")
            # Only for the eye: a full disk is told by what needs it.
            with suppress(OSError):
                aside.write_text(json.dumps(asdict(Status(unit, what, done, total, now - step_began, now - began))))
                os.replace(aside, path)

        try:
            yield report
        finally:
            path.unlink(missing_ok=True)

    def read(self) -> list[Status]:
        """What is being done, by piece of work. A file of a process that is no more is not shown."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                status = Status(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                continue
            if _is_alive(int(path.stem)):
                found.append(status)
        return sorted(found, key=lambda status: status.unit)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
