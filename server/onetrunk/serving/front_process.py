"""A front under its launcher: the process, and the thread that keeps it alive."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from onetrunk.protocol.errors import ServerError, UserError
from onetrunk.protocol.names import ADMIN_KEY_VARIABLE
from onetrunk.serving.command import PortTakenError
from onetrunk.serving.front.settings import MIB, MULTIPROCESS_FOLDER, FrontSettings
from onetrunk.serving.health import Activity
from onetrunk.serving.watched import RestartBackoff

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
# A front writes a line every second. One that is silent for so long, and does nothing meanwhile or works for longer
# than that, hangs and is replaced.
SILENCE_S = 5.0
STOP_GRACE_S = 10.0
POLL_S = 0.25
# A front holds what its limits allow, and its code. gRPC reads messages before they can be counted, so an attacker with
# many connections can make it hold more; then it is replaced before it takes the memory of the others.
CODE_BYTES = 1024 * MIB
# Large messages are given back to the system at once, and threads share what is left of small ones.
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(16 * MIB)}


class FrontProcess:
    """A process of the front. It ends by itself when this process does."""

    def __init__(self, settings: FrontSettings, log_path: Path, metrics_folder: Path | None = None) -> None:
        """Start the process and wait until it listens.

        Args:
            settings: What it is started with. They are sent through a pipe, so that the key is seen by nobody.
            log_path: The file to which it logs.
            metrics_folder: Where several processes of one front keep their metrics.

        Raises:
            PortTakenError: A port is in use.
            UserError: A setting needs packages that are not installed.
            ServerError: It does not start.
        """
        environment = MALLOC | {name: value for name, value in os.environ.items() if name != ADMIN_KEY_VARIABLE}
        if metrics_folder is not None:
            environment[MULTIPROCESS_FOLDER] = str(metrics_folder)
        with log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onetrunk.serving.front"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=environment,
                # Python looks for modules in the current folder first, which must be nobody's.
                cwd="/",
                start_new_session=True,
            )
        self._heard, self._cpu_heard = time.monotonic(), 0.0
        self._activity = Activity(psutil.STATUS_RUNNING, 0.0, self._heard)
        self._most_bytes = settings.limits.max_pending_bytes + CODE_BYTES
        self._send(settings.line())
        try:
            answer = self._first_line(log_path)
        except BaseException:
            self.kill()
            raise
        if "error" in answer:
            self.kill()
            if answer.get("user"):
                raise UserError(answer["error"])
            raise (PortTakenError if answer.get("port_taken") else ServerError)(answer["error"])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def move(self, folder: Path | None) -> None:
        """Tell it where Triton's sockets are from now on; None while there is no Triton."""
        self._send(json.dumps(str(folder) if folder is not None else None))

    def fault(self) -> str | None:
        """Return what is wrong with the process, or None."""
        status = self._process.poll()
        if status is not None:
            return f"died (exit status {status})"
        now = time.monotonic()
        process = psutil.Process(self.pid)
        state, times = process.status(), process.cpu_times()
        cpu_s = times.user + times.system
        self._activity.see(state, cpu_s, now)
        while select.select([self._stdout], [], [], 0)[0]:
            if not os.read(self._stdout, 4096):
                break
            self._heard, self._cpu_heard = now, cpu_s
        silent_s = now - self._heard
        # On a busy machine it may be silent because it gets no CPU: that is no reason to make its clients start anew.
        hangs = self._activity.is_still(self._heard, now) or cpu_s - self._cpu_heard > SILENCE_S
        if silent_s > SILENCE_S and hangs:
            return f"was silent for {silent_s:.0f} s"
        held = process.memory_info().rss
        if held > self._most_bytes:
            return f"held {held // MIB:,} MiB, and may hold {self._most_bytes // MIB:,}"
        return None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._close()

    def end(self) -> None:
        """Tell the process to end after it has answered what is in flight."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone already
            self._process.stdin.close()

    def stop(self) -> None:
        """End the process after it has answered what is in flight."""
        self.end()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    @property
    def _stdout(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _first_line(self, log_path: Path) -> dict[str, str]:
        found, deadline = b"", time.monotonic() + START_TIMEOUT_S
        while b"\n" not in found:
            if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ServerError(f"the front does not start within {START_TIMEOUT_S:g} s (log: {log_path})")
            part = os.read(self._stdout, 4096)
            if not part:
                raise ServerError(f"the front ended before it listened (log: {log_path})")
            found += part
        answer: dict[str, str] = json.loads(found.split(b"\n")[0])
        return answer

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the keeper finds out
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class FrontKeeper:
    """Keeps a front running: replaces a process that died or hangs, and tells all where Triton is."""

    def __init__(self, settings: FrontSettings, log_path: Path, workers: int = 1) -> None:
        """Start the front.

        Args:
            settings: The settings of the whole front.
            log_path: The file to which its processes log.
            workers: The number of processes, which share the ports and the limits.

        Raises:
            PortTakenError: A port is in use.
            ServerError: It does not start.
        """
        self._log_path = log_path
        self._folder: Path | None = None
        self._backoff = RestartBackoff()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._metrics = tempfile.TemporaryDirectory(prefix="onetrunk-front-") if workers > 1 else None
        limits = settings.limits.shared_by(workers)
        self._settings = settings.model_copy(update={"limits": limits, "share_ports": workers > 1})
        self._processes: list[FrontProcess] = []
        try:
            for _ in range(workers):
                self._processes.append(self._started())
        except BaseException:
            self._stop_all()
            raise
        self._thread = threading.Thread(target=self._run, name="onetrunk-front-keeper", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """The process ids of the front, which change when one is replaced."""
        return [process.pid for process in self._processes]

    def move(self, folder: Path | None) -> None:
        """Tell the front where Triton's sockets are; None while there is no Triton."""
        with self._lock:
            self._folder = folder
            for process in self._processes:
                process.move(folder)

    def stop(self) -> None:
        """Stop the front. May be called twice."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._stop_all()

    def _stop_all(self) -> None:
        # All at once: each has the same time.
        for process in self._processes:
            process.end()
        for process in self._processes:
            process.stop()
        if self._metrics is not None:
            self._metrics.cleanup()

    def _forget_gauges(self, pid: int) -> None:
        """Remove what a process that is no more had in work, which would be counted for ever."""
        if self._metrics is not None:
            for file in Path(self._metrics.name).glob(f"gauge_live*_{pid}.db"):
                file.unlink(missing_ok=True)

    def _started(self) -> FrontProcess:
        folder = Path(self._metrics.name) if self._metrics is not None else None
        return FrontProcess(self._settings, self._log_path, folder)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self._look()
            except (ServerError, OSError) as error:  # such as a full disk
                log.error("the front does not start (try %d): %s", self._backoff.tries, error)
            except Exception:
                # Clients have no other door, so watching must go on, whatever happened in one look.
                log.exception("a look at the front failed; it goes on")

    def _look(self) -> None:
        for place, process in enumerate(self._processes):
            fault = process.fault()
            if fault is None or not self._backoff.may_try(time.monotonic()):
                continue
            began = time.monotonic()
            self._backoff.note_try(began)
            log.warning("the front %s; starting another", fault)
            with self._lock:
                process.kill()
                self._forget_gauges(process.pid)
                self._processes[place] = self._started()
                self._processes[place].move(self._folder)
            log.warning("the front answers again after %.1f s", time.monotonic() - began)
