"""Judges whether a model hangs, from what successive looks at it find.

A process that is slow is not one that hangs, and only the latter may be killed. So nothing is concluded from a clock
alone. A process hangs if a request waits for it, it has answered nobody meanwhile, and it

- was stopped by a signal, or
- neither uses nor waits for a CPU, or
- has used several times the CPU time that a full batch of the longest texts needs, as in an endless loop.

That a request waits is certain of the server's own: a model that has answered nobody for a while gets a probe.
"""

from __future__ import annotations

from concurrent.futures import Future

import psutil

from onetrunk.protocol.errors import NotReady
from onetrunk.serving.stubs import StubProcess

# How long a process may be stopped.
STOPPED_S = 1.5
# How long it may do nothing while a probe waits; longer if it waits for a disk, as when memory is swapped.
STILL_S = 3.0
STILL_ON_DISK_S = 30.0
# CPU time that even a process without work uses, per second: it looks whether Triton still lives.
IDLE_LOAD = 0.02
# How often in a row a model may answer its probes with an error, if it has answered them rightly before.
ERRORS = 2
# The same for an ensemble, and how long its probe may go without an answer.
ENSEMBLE_ERRORS = 3
STUCK_S = 30.0


class Activity:
    """How long a process has neither used nor waited for a CPU. On a busy machine, a process may wait for seconds."""

    def __init__(self, state: str, cpu_s: float, now: float) -> None:
        self._moved_at, self._cpu_moved = now, cpu_s
        self._waits_for_disk = state == psutil.STATUS_DISK_SLEEP

    def see(self, state: str, cpu_s: float, now: float) -> None:
        """Record what a look finds: the process's state, the CPU time that it has used, and the clock's reading."""
        idle_s = IDLE_LOAD * (now - self._moved_at) + 0.02  # the kernel counts in hundredths of a second
        if cpu_s - self._cpu_moved > idle_s or state == psutil.STATUS_RUNNING:
            self._moved_at, self._cpu_moved = now, cpu_s
        self._waits_for_disk = state == psutil.STATUS_DISK_SLEEP

    def is_still(self, since: float, now: float) -> bool:
        """Return whether it has done nothing for too long since a moment at which it had something to do."""
        still_s = now - max(self._moved_at, since)
        return still_s >= (STILL_ON_DISK_S if self._waits_for_disk else STILL_S)


class StubHealth:
    """The health of one process of a stub."""

    def __init__(self, process: StubProcess, now: float, cpu_limit_s: float) -> None:
        """Begin to watch.

        Args:
            process: The process.
            now: The reading of a monotonic clock, in seconds.
            cpu_limit_s: The CPU time in seconds within which it should answer anything.
        """
        self._cpu_limit_s = cpu_limit_s
        self._successes: int | None = None
        self._most_foreign = 0
        self._probe: Future[None] | None = None
        self._probes_counted = 0
        self._errors = 0
        self._was_well = False
        self.asked_at = now
        """When somebody else than the watchdog was answered last."""
        self.alive_at = now
        """When anybody was answered last."""
        self.forget(process, now)

    def forget(self, process: StubProcess, now: float) -> None:
        """Forget everything that was measured by the clock, as after a time in which the watchdog did not run."""
        self.alive_at = self._probed_at = now
        self._cpu_alive = process.cpu_s
        self._activity = Activity(process.state, process.cpu_s, now)
        self._stopped_at: float | None = None

    def probe_is_due(self, now: float, interval_s: float) -> bool:
        """Return whether it has answered nobody, and was not probed, for so many seconds."""
        return self._probe is None and now - max(self.alive_at, self._probed_at) >= interval_s

    def note_probe(self, answer: Future[None], now: float) -> None:
        """Record that a probe was sent."""
        self._probe, self._probed_at = answer, now
        self._probes_counted += 1

    def see(self, process: StubProcess, successes: int | None, now: float) -> str | None:
        """Judge by what a look finds.

        Args:
            process: The process as it is now.
            successes: Triton's count of the requests that the model has answered; None if it is not known.
            now: The reading of the clock.

        Returns:
            Why it must be replaced, or None.
        """
        if successes is not None and successes != self._successes:
            self._successes = successes
            self._errors = 0
            self._note_sign(process, now)
            if successes - self._probes_counted > self._most_foreign:
                self._most_foreign = successes - self._probes_counted
                self.asked_at = now
        return self._judge_state(process, now) or self._judge_answer(process, now) or self._judge_work(process, now)

    def _note_sign(self, process: StubProcess, now: float) -> None:
        self.alive_at = now
        self._cpu_alive = process.cpu_s

    def _judge_state(self, process: StubProcess, now: float) -> str | None:
        if process.state == psutil.STATUS_TRACING_STOP:  # somebody debugs it, and knows
            self.forget(process, now)
        if process.state != psutil.STATUS_STOPPED:
            self._stopped_at = None
            return None
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        return "its process is stopped by a signal" if now - self._stopped_at >= STOPPED_S else None

    def _judge_answer(self, process: StubProcess, now: float) -> str | None:
        """Take a probe's answer, if there is one. An error is an answer too, but not one to live with."""
        if self._probe is None or not self._probe.done():
            return None
        answer, self._probe = self._probe, None
        error = answer.exception()
        if error is None:
            self._errors, self._was_well = 0, True
            self._note_sign(process, now)
            return None
        self._probes_counted -= 1
        if isinstance(error, NotReady):  # Triton is gone, which others notice
            return None
        self._errors += 1
        if self._was_well and self._errors >= ERRORS:
            return f"it fails to answer: {error}"
        return None

    def _judge_work(self, process: StubProcess, now: float) -> str | None:
        """Judge by the CPU time that the process uses while a probe waits."""
        self._activity.see(process.state, process.cpu_s, now)
        if self._probe is None or self.alive_at > self._probed_at:
            return None
        if self._activity.is_still(self._probed_at, now):
            return f"its process did nothing for {now - self._probed_at:.0f} s although a request waits for it"
        used_s = process.cpu_s - self._cpu_alive
        if used_s >= self._cpu_limit_s:
            return f"its process used {used_s:.0f} s of CPU time without an answer (limit {self._cpu_limit_s:.0f} s)"
        return None


class EnsembleHealth:
    """The health of an ensemble, which has no process: it is judged only while all of its parts answer."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.failures = 0
        self._successes: int | None = None
        self._probe: Future[None] | None = None
        self.forget(now)

    def forget(self, now: float) -> None:
        """Forget everything that was measured by the clock."""
        self._alive_at = self._probed_at = now

    def probe_is_due(self, now: float, interval_s: float) -> bool:
        """Return whether it has answered nobody, and was not probed, for so many seconds."""
        return self._probe is None and now - max(self._alive_at, self._probed_at) >= interval_s

    def note_probe(self, answer: Future[None], now: float) -> None:
        """Record that a probe was sent."""
        self._probe, self._probed_at = answer, now

    def see(self, successes: int | None, now: float, *, parts_answer: bool, asked_at: float) -> str | None:
        """Judge by what a look finds.

        Args:
            successes: Triton's count of the requests that the ensemble has answered.
            now: The reading of the clock.
            parts_answer: Whether all models with a process answer. Otherwise they are to blame.
            asked_at: When a model answered somebody else than the watchdog last. While they do, a probe may wait in a
                long queue.

        Returns:
            Why Triton must be restarted, or None.
        """
        if successes != self._successes:
            self._successes, self._alive_at, self.failures = successes, now, 0
        if self._probe is not None and self._probe.done():
            answer, self._probe = self._probe, None
            error = answer.exception()
            if error is None:
                self._alive_at, self.failures = now, 0
            elif parts_answer and not isinstance(error, NotReady):
                self.failures += 1
                if self.failures >= ENSEMBLE_ERRORS:
                    return f"{self.name} fails to answer although its parts do: {error}"
        if self._probe is None or not parts_answer or self._alive_at > self._probed_at:
            return None
        waited_s = now - max(self._probed_at, asked_at)
        return f"{self.name} gave no answer for {waited_s:.0f} s although its parts do" if waited_s >= STUCK_S else None
