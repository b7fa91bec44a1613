"""Restarts what dies or hangs: the process of a model, or Triton as a whole.

Triton never restarts the process of a model that died, does not notice one that hangs, and keeps reporting both models
ready; every request through them then fails or waits. So a thread looks at the processes four times a second. Once a
second it reads Triton's counts, probes each model that has answered nobody for a while, and judges each by itself
(`onetrunk.serving.health`). A process that hangs is killed, since Triton waits for it before it unloads a model, and
then its model is loaded again, as that of any process that died. All other models go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import ENSEMBLE_VERSION, ENSEMBLES
from onetrunk.serving.health import STILL_S, STOPPED_S, EnsembleHealth, StubHealth
from onetrunk.serving.probes import probe_inputs
from onetrunk.serving.shared_memory import LEAST_SHARE_BYTES, MIB, close_to_others, region_bytes, share_bytes
from onetrunk.serving.stubs import Stub, StubProcess, process_state, stub_processes
from onetrunk.serving.watched import RestartBackoff, Watched

log = logging.getLogger(__name__)

POLL_S = 0.25
JUDGE_S = 1.0
# After a pause of this length between two looks, the watchdog itself was stopped, and nobody is judged by the clock.
OWN_PAUSE_S = 3.0
# How long Triton takes at most to answer a question about itself, unless the machine is too busy to judge anybody.
PROMPT_S = 1.0
# A model whose share of shared memory is exceeded is loaded again when nobody has asked it for so long.
IDLE_S = 10.0
# The least CPU time that counts as an endless loop, and how much more than a full batch needs.
LEAST_CPU_LIMIT_S = 6.0
CPU_LIMIT_FACTOR = 3.0
# So many questions about itself in a row Triton may leave without an answer.
FAILURES_BEFORE_RESTART = 3
# How much more rarely ensembles are probed than their parts, which each cost a part of it.
ENSEMBLE_INTERVALS = 12


def run_in_thread(job: Callable[[], None]) -> None:
    """Run a job that may take minutes beside the watchdog, so that it goes on watching all other models."""
    threading.Thread(target=job, name="onetrunk-reload", daemon=True).start()


@dataclass
class Part:
    """A process of a model under watch, and its model's config once it was needed."""

    health: StubHealth
    config: pb.ModelConfig | None = None


class Watchdog(threading.Thread):
    """A thread that watches a server until it is stopped. A server that has answered once is never given up."""

    def __init__(
        self,
        watched: Watched,
        restart: Callable[[], Watched],
        *,
        max_length: int,
        probe_interval_s: float | None,
        run_apart: Callable[[Callable[[], None]], None] = run_in_thread,
    ) -> None:
        """Prepare the thread.

        Args:
            watched: The server, which has answered a full batch already.
            restart: Ends the server, starts it again and waits for its answer. It may raise OneTrunkError or OSError.
            max_length: The length in tokens of the longest texts.
            probe_interval_s: The seconds for which a model may answer nobody before it is probed; None for no probes.
            run_apart: Runs what takes long beside the watchdog.
        """
        super().__init__(name="onetrunk-watchdog", daemon=True)
        self._watched = watched
        self._restart = restart
        self._max_length = max_length
        self._probe_interval_s = probe_interval_s
        self._run_apart = run_apart
        self._stopping = threading.Event()
        self._server_backoff = RestartBackoff()
        self._model_backoff: dict[str, RestartBackoff] = {}
        self._reloads = 0
        processes = stub_processes(watched.process.pid)
        # What a process has used so far: loading, and a full batch of the longest texts.
        self._cpu_limits = {found.stub.model: CPU_LIMIT_FACTOR * found.cpu_s for found in processes}
        self._begin(processes)

    def _begin(self, processes: list[StubProcess]) -> None:
        """Begin to watch a server that has just started."""
        now = time.monotonic()
        # Taken at once, so that a stub that dies before the first look is missed too.
        self._known = {found.stub for found in processes}
        self._missing: set[Stub] = set()
        self._hung: set[Stub] = set()
        self._reloading: set[str] = set()
        self._parts: dict[int, Part] = {}
        self._ensembles = [EnsembleHealth(name, now) for name in ENSEMBLES]
        self._unanswered = 0
        self._is_down = False
        self._judged_at = self._looked_at = self._stopped_at = now

    def stop(self) -> None:
        """Ask the thread to end. A look in progress ends first."""
        self._stopping.set()

    def run(self) -> None:
        """Look until the thread is stopped."""
        while not self._stopping.wait(POLL_S):
            try:
                self._look()
            except (OneTrunkError, OSError) as error:
                # The server went away in the middle of a request: the next look finds out why.
                log.debug("watchdog: %s", error)
            except Exception:
                # Serving goes on, so watching must go on too, whatever happened in one look.
                if not self._stopping.is_set():
                    log.exception("a look of the watchdog failed; it goes on")

    def _look(self) -> None:
        try:
            if self._is_down:
                self._restart_server()
            elif (status := self._watched.process.exit_status()) is not None:
                log.warning("Triton died: %s", self._watched.death_cause(status))
                self._restart_server()
            elif (stopped_s := self._stopped_s()) >= STOPPED_S:
                self._end_triton("its process is stopped by a signal")
            elif not stopped_s:  # otherwise a question would wait for its answer
                self._look_at_models()
        finally:
            self._looked_at = time.monotonic()

    def _look_at_models(self) -> None:
        # Before the processes are listed, since a reload may end at any moment.
        reloading = set(self._reloading)
        processes = stub_processes(self._watched.process.pid)
        close_to_others(found.region for found in processes)
        now = time.monotonic()
        if now - self._looked_at > OWN_PAUSE_S:
            self._parts.clear()
            for ensemble in self._ensembles:
                ensemble.forget(now)
        if now - self._judged_at >= JUDGE_S:
            self._judged_at = now
            self._judge([found for found in processes if found.stub.model not in reloading], now)
        self._look_for_missing({found.stub for found in processes}, reloading)

    def _look_for_missing(self, living: set[Stub], reloading: set[str]) -> None:
        """Find models whose process is gone although Triton means to serve them."""
        self._known |= living
        missing = self._known - living
        # A stub that is missing twice in a row is not just being replaced.
        for stub in sorted(missing & self._missing):
            if stub.model in reloading:
                continue
            if self._watched.admin.is_loaded(stub.model, stub.version):
                self._reload(stub.model, "hung" if stub in self._hung else "died")
            else:  # unloaded on purpose
                self._known.discard(stub)
                self._hung.discard(stub)
        self._missing = missing

    def _judge(self, processes: list[StubProcess], now: float) -> None:
        """Judge every model by itself, replace those that hang, and probe those that have answered nobody."""
        counts = self._read_counts()
        # A Triton that takes so long for so little has no time to pass requests on either: nobody is to blame for it.
        if counts is None or time.monotonic() - now > PROMPT_S:
            return
        parts = {found.pid: self._parts.get(found.pid) or self._new_part(found, now) for found in processes}
        self._parts = parts
        hung = []
        for found in processes:
            key = (found.stub.model, found.stub.version)
            reason = parts[found.pid].health.see(found, counts.get(key), now)
            if reason is not None:
                hung.append((found, reason))
        if len(hung) == len(processes) > 1 and not any(found.state == psutil.STATUS_STOPPED for found, _ in hung):
            self._end_triton(f"none of its models answers, {hung[0][0].stub.model} because {hung[0][1]}")
            return
        for found, reason in hung:
            self._kill(found, reason, alone=_is_alone(found, processes))
        self._give_back_memory(processes, now)
        if self._probe_interval_s is not None:
            self._probe_the_silent([found for found in processes if (found.stub.model, found.stub.version) in counts])
            self._judge_ensembles(counts, now)

    def _read_counts(self) -> dict[tuple[str, int], int] | None:
        """Return (model, version) -> how many requests it has answered successfully, or None if Triton is restarted."""
        try:
            found = self._watched.admin.statistics()
        except OneTrunkError as error:
            self._unanswered += 1
            if self._unanswered < FAILURES_BEFORE_RESTART:
                raise
            self._end_triton(f"it does not answer even questions about itself: {error}")
            return None
        self._unanswered = 0
        return {(entry.name, int(entry.version)): int(entry.inference_stats.success.count) for entry in found}

    def _new_part(self, found: StubProcess, now: float) -> Part:
        limit_s = self._cpu_limits.get(found.stub.model) or max(self._cpu_limits.values(), default=0.0)
        return Part(StubHealth(found, now, max(limit_s, LEAST_CPU_LIMIT_S)))

    def _kill(self, found: StubProcess, reason: str, *, alone: bool) -> None:
        log.warning("%s hangs: %s; the process is replaced", found.stub.model, reason)
        if alone:  # otherwise its successor runs already
            self._hung.add(found.stub)
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)

    def _probe_the_silent(self, processes: list[StubProcess]) -> None:
        assert self._probe_interval_s is not None
        for found in processes:
            part = self._parts[found.pid]
            now = time.monotonic()
            config = self._config(found)
            if config is not None and part.health.probe_is_due(now, self._probe_interval_s):
                stub = found.stub
                part.health.note_probe(
                    self._watched.admin.infer_later(stub.model, stub.version, probe_inputs(config)), now
                )

    def _judge_ensembles(self, counts: dict[tuple[str, int], int], now: float) -> None:
        assert self._probe_interval_s is not None
        recently = now - 2 * self._probe_interval_s - STILL_S
        parts_answer = not (self._missing or self._reloading) and all(
            part.health.alive_at > recently for part in self._parts.values()
        )
        asked_at = max((part.health.asked_at for part in self._parts.values()), default=now)
        for ensemble in self._ensembles:
            successes = counts.get((ensemble.name, ENSEMBLE_VERSION))
            reason = ensemble.see(successes, now, parts_answer=parts_answer, asked_at=asked_at)
            if reason is not None:
                self._end_triton(reason)
                return
            interval_s = self._probe_interval_s * (1 if ensemble.failures else ENSEMBLE_INTERVALS)
            if ensemble.probe_is_due(now, interval_s):
                config = self._watched.admin.config(ensemble.name)
                if config is not None:
                    answer = self._watched.admin.infer_later(ensemble.name, ENSEMBLE_VERSION, probe_inputs(config))
                    ensemble.note_probe(answer, now)

    def _give_back_memory(self, processes: list[StubProcess], now: float) -> None:
        """Reload models whose shared memory has grown beyond their share, once nobody asks them."""
        for found in processes:
            part = self._parts[found.pid]
            size = region_bytes(found.region)
            if size <= LEAST_SHARE_BYTES or now - part.health.asked_at < IDLE_S:
                continue
            # One that was replaced a moment ago lives on for as long as Triton unloads it.
            if not _is_alone(found, processes):
                continue
            config = self._config(found)
            if config is not None and size > (share := share_bytes(config, self._max_length)):
                self._reload(
                    found.stub.model,
                    f"held {size // MIB} MiB of shared memory (its share is {share // MIB} MiB)",
                )

    def _config(self, found: StubProcess) -> pb.ModelConfig | None:
        part = self._parts[found.pid]
        if part.config is None:
            part.config = self._watched.admin.config(found.stub.model)
        return part.config

    def _reload(self, model: str, what: str) -> None:
        """Load a model again, unless that was tried only just now.

        Args:
            model: The model.
            what: What happened to it, for the log.
        """
        backoff = self._model_backoff.setdefault(model, RestartBackoff())
        began = time.monotonic()
        if not backoff.may_try(began):
            return
        backoff.note_try(began)
        self._reloads += 1
        self._reloading.add(model)
        # A restart of Triton replaces all of these, and what comes too late must not touch the new ones.
        admin, reloading, hung, count = self._watched.admin, self._reloading, self._hung, self._reloads

        def job() -> None:
            try:
                admin.reload(model, count)
            except OneTrunkError as error:
                if admin is self._watched.admin and not self._stopping.is_set():
                    log.error("%s %s and does not load again (try %d): %s", model, what, backoff.tries, error)
            else:
                hung.difference_update([stub for stub in tuple(hung) if stub.model == model])
                log.warning("%s %s and was reloaded in %.1f s", model, what, time.monotonic() - began)
            finally:
                reloading.discard(model)

        self._run_apart(job)

    def _stopped_s(self) -> float:
        """Return for how many seconds Triton has been stopped by a signal; 0 if it is not."""
        now = time.monotonic()
        if process_state(self._watched.process.pid) != psutil.STATUS_STOPPED:
            self._stopped_at = now
        return now - self._stopped_at

    def _end_triton(self, reason: str) -> None:
        """End a Triton that does not answer, which may not listen to anything but SIGKILL, and restart it."""
        log.warning("Triton hangs: %s", reason)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._watched.process.pid, signal.SIGKILL)
        self._restart_server()

    def _restart_server(self) -> None:
        """Restart the whole server, as soon as the last try is long enough ago."""
        self._is_down = True
        while not self._server_backoff.may_try(time.monotonic()):
            if self._stopping.wait(POLL_S):
                return
        began = time.monotonic()
        self._server_backoff.note_try(began)
        log.warning("Triton is restarted")
        try:
            self._watched = self._restart()
        except (OneTrunkError, OSError) as error:
            if not self._stopping.is_set():
                backoff = self._server_backoff
                log.error(
                    "Triton does not restart (try %d, the next one in %.0f s): %s", backoff.tries, backoff.wait_s, error
                )
            return
        self._begin(stub_processes(self._watched.process.pid))
        log.warning("Triton answers again after %.1f s", time.monotonic() - began)


def _is_alone(found: StubProcess, processes: list[StubProcess]) -> bool:
    """Return whether no other process runs the same model. A successor runs before the one that it replaces ends."""
    return [other.stub for other in processes].count(found.stub) == 1
