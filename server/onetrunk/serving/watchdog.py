"""Brings back what dies: a model's process, or Triton as a whole.

Triton never restarts a Python-backend process that died, and goes on reporting its model ready; every request through
that model then fails. So this thread looks at the processes, four times a second, and asks for an answer now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.serving.probe import answers_given, probe_all_outputs
from onetrunk.serving.process import TritonProcess
from onetrunk.serving.stubs import Stub, living_stubs

log = logging.getLogger(__name__)

POLL_S = 0.25
PROBE_TIMEOUT_S = 10.0
# So many probes in a row must fail, while nobody else gets an answer either, before a server is taken to be stuck.
PROBES_BEFORE_RESTART = 3


class Backoff:
    """How long to wait before the next try: nothing at first, then 1, 2, 4, ... seconds; forgotten after calm."""

    def __init__(self, longest_s: float = 60.0, calm_s: float = 300.0) -> None:
        self._longest_s = longest_s
        self._calm_s = calm_s
        self._last_try = float("-inf")
        self.tries = 0

    def may_try(self, now: float) -> bool:
        """Whether the wait is over, at this reading of a monotonic clock."""
        if now - self._last_try > self._calm_s:
            self.tries = 0
        wait_s = min(2.0 ** (self.tries - 1), self._longest_s) if self.tries else 0.0
        return now - self._last_try >= wait_s

    def note_try(self, now: float) -> None:
        """Remembers that a try was made."""
        self.tries += 1
        self._last_try = now


@dataclass(frozen=True)
class Watched:
    """A running server, as the watchdog sees it. Another one takes its place after a restart."""

    process: TritonProcess
    admin: AdminClient


class _GiveUp(Exception):  # noqa: N818 - not an error: it carries one out of a look
    """The server cannot be kept running, because of `failure`."""

    def __init__(self, failure: OneTrunkError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Watchdog(threading.Thread):
    """Watches a server until told to stop."""

    def __init__(
        self,
        watched: Watched,
        restart: Callable[[], Watched],
        give_up: Callable[[OneTrunkError], None],
        *,
        probe_interval_s: float | None,
        restarts: int = 5,
    ) -> None:
        """Prepares the thread.

        Args:
            watched: The server, which has answered already.
            restart: Ends the server, starts it anew and waits for its answer; raises ServerError.
            give_up: Told why, when the server cannot be kept running.
            probe_interval_s: Seconds between two judgements by an answer; None for none.
            restarts: How many restarts within five minutes are too many.
        """
        super().__init__(name="onetrunk-watchdog", daemon=True)
        self._watched = watched
        self._restart = restart
        self._give_up = give_up
        self._probe_interval_s = probe_interval_s
        self._restarts = restarts
        self._stopping = threading.Event()
        self._server_backoff = Backoff()
        self._model_backoff: dict[str, Backoff] = {}
        self._revivals = 0
        # From the very moment of the answer: what dies before the first look is missed too.
        self._known: set[Stub] = living_stubs(watched.process.pid)
        self._missing: set[Stub] = set()
        self._next_probe = time.monotonic() + (probe_interval_s or 0.0)
        self._failed_probes = 0
        self._answers = 0

    def stop(self) -> None:
        """Asks the thread to end. A look that has begun ends first."""
        self._stopping.set()

    def run(self) -> None:
        """Looks again and again."""
        while not self._stopping.wait(POLL_S):
            try:
                self._look()
            except _GiveUp as end:
                if not self._stopping.is_set():
                    self._give_up(end.failure)
                return
            except (OneTrunkError, OSError) as error:
                # The server went away in the middle of a question: the next look sees why.
                log.debug("watchdog: %s", error)
            except Exception:
                # Serving goes on, so watching must too, whatever one look ran into.
                if not self._stopping.is_set():
                    log.exception("the watchdog's look failed; it looks again")

    def _look(self) -> None:
        status = self._watched.process.exit_status()
        if status is not None:
            self._restart_server(f"Triton died (exit status {status})")
            return
        self._look_at_stubs()
        if self._probe_interval_s is not None and time.monotonic() >= self._next_probe:
            self._look_for_answers()
            self._next_probe = time.monotonic() + self._probe_interval_s

    def _look_at_stubs(self) -> None:
        """Finds models whose process is gone, though Triton means to serve them."""
        living = living_stubs(self._watched.process.pid)
        self._known |= living
        missing = self._known - living
        # A process that is missing twice in a row was not just being replaced.
        for stub in sorted(missing & self._missing):
            if self._watched.admin.is_loaded(stub.model, stub.version):
                self._revive(stub)
            else:  # unloaded on purpose
                self._known.discard(stub)
        self._missing = missing

    def _revive(self, stub: Stub) -> None:
        backoff = self._model_backoff.setdefault(stub.model, Backoff())
        now = time.monotonic()
        if not backoff.may_try(now):
            return
        backoff.note_try(now)
        self._revivals += 1
        try:
            self._watched.admin.reload(stub.model, self._revivals)
        except OneTrunkError as error:
            log.error("%s died and does not load again (try %d): %s", stub.model, backoff.tries, error)
        else:
            log.warning("%s died and was brought back in %.1f s", stub.model, time.monotonic() - now)

    def _look_for_answers(self) -> None:
        """Judges by an answer: one that somebody got since the last time, or else one of our own."""
        try:
            answers = answers_given(self._watched.admin)
            # After a reload Triton counts from 0 again, so any change is a sign of life.
            if answers != self._answers:
                self._answers = answers
            else:
                probe_all_outputs(self._watched.admin, PROBE_TIMEOUT_S)
        except OneTrunkError as error:
            self._failed_probes += 1
            log.error("no answer (%d of %d): %s", self._failed_probes, PROBES_BEFORE_RESTART, error)
            if self._failed_probes >= PROBES_BEFORE_RESTART:
                self._restart_server("Triton gives no answers")
        else:
            self._failed_probes = 0

    def _restart_server(self, reason: str) -> None:
        """Starts the whole server anew, unless that was tried too often.

        Raises:
            _GiveUp: It was.
        """
        while not self._server_backoff.may_try(time.monotonic()):
            if self._stopping.wait(POLL_S):
                return
        if self._server_backoff.tries >= self._restarts:
            raise _GiveUp(ServerError(f"{reason}; given up after {self._restarts} restarts"))
        began = time.monotonic()
        self._server_backoff.note_try(began)
        log.warning("%s; starting it again", reason)
        try:
            self._watched = self._restart()
        except OneTrunkError as error:
            if self._server_backoff.tries >= self._restarts:
                raise _GiveUp(error) from None
            if not self._stopping.is_set():
                log.error("Triton does not start again (try %d): %s", self._server_backoff.tries, error)
            return
        self._known, self._missing = living_stubs(self._watched.process.pid), set()
        self._failed_probes = 0
        log.warning("Triton answers again after %.1f s", time.monotonic() - began)
