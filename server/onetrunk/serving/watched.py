"""What the watchdog watches, and how long it waits between two tries to bring it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from onetrunk.admin import AdminClient
from onetrunk.serving.causes import death_cause, oom_kills
from onetrunk.serving.front.settings import TritonAddress
from onetrunk.serving.process import TritonProcess


class RestartBackoff:
    """Waits of 0, 1, 2, 4, ... seconds before the next try, which start again after a calm period.

    Attributes:
        tries: The number of tries since the last calm period.
    """

    def __init__(self, longest_s: float = 60.0, calm_s: float = 300.0) -> None:
        self._longest_s = longest_s
        self._calm_s = calm_s
        self._last_try = float("-inf")
        self.tries = 0

    @property
    def wait_s(self) -> float:
        """The seconds between the last try and the next."""
        return min(2.0 ** min(self.tries - 1, 30), self._longest_s) if self.tries else 0.0

    def may_try(self, now: float) -> bool:
        """Return whether the wait is over, at this reading of a monotonic clock."""
        if now - self._last_try > self._calm_s:
            self.tries = 0
        return now - self._last_try >= self.wait_s

    def note_try(self, now: float) -> None:
        """Record a try."""
        self.tries += 1
        self._last_try = now


@dataclass(frozen=True)
class Watched:
    """A running server, as the watchdog sees it. A restart replaces it.

    Attributes:
        process: Triton under its guard.
        admin: A connection to it.
        sockets: Where it listens.
        logged: Returns what it has logged last.
        log_path: Where it logs.
        oom_kills: How many processes the kernel had killed for want of memory when it started.
    """

    process: TritonProcess
    admin: AdminClient
    sockets: TritonAddress
    logged: Callable[[], str] = str
    log_path: Path | None = None
    oom_kills: int = field(default_factory=oom_kills)

    def death_cause(self, status: int) -> str:
        """Return in one line why it ended with this exit status."""
        return death_cause(
            status,
            self.logged(),
            out_of_memory=oom_kills() > self.oom_kills,
            disks=[self.log_path] if self.log_path is not None else [],
        )
