"""The server under attack: `serve-repo` as its user starts it, its processes, its memory and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
START_S = 180.0
MB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """What a server holds, in MB: of RAM, pages that processes share counted for each, and of /dev/shm."""

    rss_mb: float
    shm_mb: float


class Target:
    """A server that this script started, with free ports and, behind `wrapper`, under other conditions."""

    def __init__(
        self,
        repository: Path,
        *,
        key: str | None = None,
        wrapper: Sequence[str] = (),
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        program = Path(sys.executable).parent / "serve-repo"
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("ONETRUNK_")}
        self.said: list[tuple[float, str]] = []
        self.ready: dict = {}
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [*wrapper, program, repository, *ports, *options, "--json"],
            env=variables | {"COLUMNS": "1000"} | ({"ONETRUNK_ADMIN_KEY": key} if key else {}) | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Target:
        if not self.wait_ready():
            raise SystemExit(f"the server does not start: {self.last_words()}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float = START_S) -> bool:
        """Wait for the announcement; return whether it came before the server ended or the time was over."""
        timer = threading.Timer(timeout_s, self.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        self.ready = json.loads(line) if line else {}
        return bool(line)

    def stop(self, timeout_s: float = 60.0) -> int | None:
        """Stop the server as Ctrl-C does; return its exit status, or None if it had to be killed."""
        if self._process.poll() is None:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            status = None
        self._listener.join(5)
        return status

    def kill(self) -> None:
        """End everything at once."""
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    @property
    def pid(self) -> int:
        """The process id of `serve-repo`, also behind a wrapper that has replaced itself by it."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def processes(self) -> dict[str, psutil.Process]:
        """The server's processes: name of the model, `triton`, `front`, `guard` or `serve-repo` -> process."""
        launcher = psutil.Process(self._process.pid)
        found = {"serve-repo": launcher}
        for process in launcher.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found[role_of(process.cmdline(), str(Path(self.ready["repository"]).absolute()))] = process
        found.pop("", None)
        return found

    def memory(self) -> Memory:
        """What the server holds at this moment."""
        rss = 0
        for process in self.processes().values():
            with contextlib.suppress(psutil.Error):
                rss += process.memory_info().rss
        return Memory(round(rss / MB, 1), round(sum(self._shared_sizes()) / MB, 1))

    def _shared_sizes(self) -> Iterator[int]:
        for file in SHM.glob(f"onetrunk_{self._process.pid}_*"):
            with contextlib.suppress(OSError):
                yield file.stat().st_blocks * 512

    def left_behind(self) -> list[str]:
        """What of a stopped server is still there: files in /dev/shm and folders of its."""
        return sorted(path.name for path in SHM.glob(f"onetrunk_{self._process.pid}_*"))

    def first_said(self, words: Sequence[str], since: float) -> float | None:
        """The moment of the first line since then that has one of the words, or None."""
        return next((moment for moment, line in self.said if moment >= since and any(w in line for w in words)), None)

    def last_words(self) -> str:
        """The last line on stderr."""
        return self.said[-1][1] if self.said else "(silence)"

    def _listen(self) -> None:
        for line in self._process.stderr:
            if line.strip():
                self.said.append((time.monotonic(), " ".join(line.split())))


def role_of(command: Sequence[str], repository: str) -> str:
    """Return what a process of a server is by its command line, or an empty string."""
    if not command:
        return ""
    if command[0].endswith("triton_python_backend_stub") and command[1].startswith(repository):
        return Path(command[1]).parts[-3]
    if command[0].endswith("/tritonserver"):
        return "triton"
    if "onetrunk.serving.front" in command:
        return "front"
    return "guard" if any(part.endswith("/guard.py") for part in command) else ""


class PeakMemory:
    """Looks at a server's memory twenty times a second while a block runs, and keeps the most."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.before = self.most = target.memory()

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            now = self._target.memory()
            self.most = Memory(max(self.most.rss_mb, now.rss_mb), max(self.most.shm_mb, now.shm_mb))
