"""Restarts what dies: the process of a model, or Triton as a whole.

Triton runs each instance of a Python model in a process of its own, a stub. It never restarts a stub that died, and
keeps reporting its model ready; every request through that model then fails. So a thread looks at the processes four
times a second, and asks for an answer now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.protocol.names import ENSEMBLES, INPUT_IDS, MULTITASK, MULTITASK_TOKENS, TEXT
from onetrunk.serving.front.settings import TritonAddress
from onetrunk.serving.process import TritonProcess

log = logging.getLogger(__name__)

POLL_S = 0.25
PROBE_TIMEOUT_S = 10.0
# A server counts as stuck after so many failed probes in a row, if nobody else gets an answer either.
PROBES_BEFORE_RESTART = 3

STUB_PROGRAM = "triton_python_backend_stub"

_PROBES: dict[str, dict[str, NDArray[Any]]] = {
    MULTITASK: {TEXT: np.array([[b"Ready?"]], dtype=np.object_)},
    MULTITASK_TOKENS: {INPUT_IDS: np.zeros((1, 2), dtype=np.int64)},
}


@dataclass(frozen=True, order=True)
class Stub:
    """A stub, by the model that it runs. The stub that replaces a dead one is equal to it."""

    model: str
    version: int
    instance: str


def parse_stub(command: list[str]) -> Stub | None:
    """Read a stub's command line; return None for another process.

    Triton passes: program, model file (`REPOSITORY/MODEL/VERSION/FILE`), shared memory region and its two sizes,
    process id of Triton, backend folder, a handle, instance name, backend.
    """
    if len(command) < 9 or Path(command[0]).name != STUB_PROGRAM:
        return None
    version, model = Path(command[1]).parent.name, Path(command[1]).parents[1].name
    return Stub(model, int(version), command[8]) if version.isdecimal() else None


def living_stubs(triton_pid: int) -> set[Stub]:
    """Return the stubs of a Triton that are alive. A stub that died stays in the process table as a zombie."""
    found = set()
    try:
        children = psutil.Process(triton_pid).children()
    except psutil.NoSuchProcess:
        return set()
    for child in children:
        try:
            stub = parse_stub(child.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if stub is not None:
            found.add(stub)
    return found


class NoAnswerError(ServerError):
    """Triton is up, but a request for all outputs got no usable answer."""


def probe_all_outputs(admin: AdminClient, timeout_s: float) -> None:
    """Ask both ensembles for all of their outputs.

    Raises:
        NoAnswerError: There is no answer, an output is missing, or a number in it is not finite.
    """
    for ensemble, inputs in _PROBES.items():
        try:
            config = admin.config(ensemble)
            answer = admin.infer(ensemble, inputs, timeout_s=timeout_s)
        except OneTrunkError as error:
            raise NoAnswerError(f"{ensemble} gives no answer: {error}") from None
        for output in config.output if config is not None else ():
            value = answer.get(output.name)
            if value is None or value.size == 0 or not np.isfinite(value).all():
                raise NoAnswerError(f"{ensemble} answers {output.name} with {value}, not with finite numbers")


def answers_given(admin: AdminClient) -> int:
    """Return how many requests the ensembles have answered successfully since they were loaded."""
    return sum(
        int(version.inference_stats.success.count) for ensemble in ENSEMBLES for version in admin.statistics(ensemble)
    )


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

    def may_try(self, now: float) -> bool:
        """Return whether the wait is over, at this reading of a monotonic clock."""
        if now - self._last_try > self._calm_s:
            self.tries = 0
        wait_s = min(2.0 ** (self.tries - 1), self._longest_s) if self.tries else 0.0
        return now - self._last_try >= wait_s

    def note_try(self, now: float) -> None:
        """Record a try."""
        self.tries += 1
        self._last_try = now


@dataclass(frozen=True)
class Watched:
    """A running server, as the watchdog sees it. A restart replaces it."""

    process: TritonProcess
    admin: AdminClient
    sockets: TritonAddress


class _GiveUp(Exception):  # noqa: N818 - not an error: it carries one out of a look
    """The server cannot be kept running, because of `failure`."""

    def __init__(self, failure: OneTrunkError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Watchdog(threading.Thread):
    """A thread that watches a server until it is stopped."""

    def __init__(
        self,
        watched: Watched,
        restart: Callable[[], Watched],
        give_up: Callable[[OneTrunkError], None],
        *,
        probe_interval_s: float | None,
        restarts: int = 5,
    ) -> None:
        """Prepare the thread.

        Args:
            watched: The server, which has answered already.
            restart: Ends the server, starts it again and waits for its answer. It may raise OneTrunkError.
            give_up: Called with the reason when the server cannot be kept running.
            probe_interval_s: The seconds between two checks for an answer; None for no checks.
            restarts: The number of restarts within five minutes after which the watchdog gives up.
        """
        super().__init__(name="onetrunk-watchdog", daemon=True)
        self._watched = watched
        self._restart = restart
        self._give_up = give_up
        self._probe_interval_s = probe_interval_s
        self._restarts = restarts
        self._stopping = threading.Event()
        self._server_backoff = RestartBackoff()
        self._model_backoff: dict[str, RestartBackoff] = {}
        self._revivals = 0
        # Taken at once, so that a stub that dies before the first look is missed too.
        self._known: set[Stub] = living_stubs(watched.process.pid)
        self._missing: set[Stub] = set()
        self._next_probe = time.monotonic() + (probe_interval_s or 0.0)
        self._failed_probes = 0
        self._answers = 0

    def stop(self) -> None:
        """Ask the thread to end. A look in progress ends first."""
        self._stopping.set()

    def run(self) -> None:
        """Look until the thread is stopped."""
        while not self._stopping.wait(POLL_S):
            try:
                self._look()
            except _GiveUp as end:
                if not self._stopping.is_set():
                    self._give_up(end.failure)
                return
            except (OneTrunkError, OSError) as error:
                # The server went away in the middle of a request: the next look finds out why.
                log.debug("watchdog: %s", error)
            except Exception:
                # Serving goes on, so watching must go on too, whatever happened in one look.
                if not self._stopping.is_set():
                    log.exception("a look of the watchdog failed; it goes on")

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
        """Find models whose process is gone although Triton means to serve them."""
        living = living_stubs(self._watched.process.pid)
        self._known |= living
        missing = self._known - living
        # A stub that is missing twice in a row is not just being replaced.
        for stub in sorted(missing & self._missing):
            if self._watched.admin.is_loaded(stub.model, stub.version):
                self._revive(stub)
            else:  # unloaded on purpose
                self._known.discard(stub)
        self._missing = missing

    def _revive(self, stub: Stub) -> None:
        backoff = self._model_backoff.setdefault(stub.model, RestartBackoff())
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
            log.warning("%s died and was reloaded in %.1f s", stub.model, time.monotonic() - now)

    def _look_for_answers(self) -> None:
        """Check for an answer that somebody got since the last check, or else ask for one."""
        try:
            answers = answers_given(self._watched.admin)
            # Triton counts from 0 again after a reload, so any change means that it works.
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
        """Restart the whole server.

        Raises:
            _GiveUp: This was tried too often.
        """
        while not self._server_backoff.may_try(time.monotonic()):
            if self._stopping.wait(POLL_S):
                return
        if self._server_backoff.tries >= self._restarts:
            raise _GiveUp(ServerError(f"{reason}; gave up after {self._restarts} restarts"))
        began = time.monotonic()
        self._server_backoff.note_try(began)
        log.warning("%s; restarting it", reason)
        try:
            self._watched = self._restart()
        except OneTrunkError as error:
            if self._server_backoff.tries >= self._restarts:
                raise _GiveUp(error) from None
            if not self._stopping.is_set():
                log.error("Triton does not restart (try %d): %s", self._server_backoff.tries, error)
            return
        self._known, self._missing = living_stubs(self._watched.process.pid), set()
        self._failed_probes = 0
        log.warning("Triton answers again after %.1f s", time.monotonic() - began)
