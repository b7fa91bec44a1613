"""A peer while it runs: started, ready, measured and gone."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.peer import Peer

HOST = "127.0.0.1"
START_TIMEOUT_S = 900.0
REQUEST_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.25
LOG_TAIL = 4000
# Long enough for every task's model to have run once, whatever the length of the texts to come.
FIRST_TEXT = "Is anybody there?"


class PeerError(Exception):
    """A peer did not start, or did not answer.

    Attributes:
        status: HTTP's, where it answered with an error.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RunningPeer:
    """A peer that answers."""

    peer: Peer
    tasks: tuple[str, ...]
    port: int
    pid: int
    host: str = HOST

    def ask(self, text: str, pair: str | None = None, tasks: Sequence[str] | None = None) -> dict[str, list[float]]:
        """Task -> scores, its requests sent one after the other.

        Raises:
            PeerError: it answered with an error.
            ValueError: it answered with something else.
            OSError: it did not answer.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=REQUEST_TIMEOUT_S)
        bodies = []
        try:
            for request in self.peer.requests(text, pair, tasks or self.tasks):
                connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                bodies.append(response.read())
                if response.status != 200:
                    message = f"{self.peer.name}: {request.path} answered {response.status}: {bodies[-1][:500]!r}"
                    raise PeerError(message, response.status)
        finally:
            connection.close()
        return self.peer.check(bodies)

    def processes(self) -> list[psutil.Process]:
        """All of its processes that live now."""
        return _processes(self.pid)

    def rss_bytes(self) -> int:
        """Resident memory of all of its processes; what they share is counted in each."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


@contextmanager
def running_peer(
    peer: Peer, python: Path, models: Path, threads: int, *, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[RunningPeer]:
    """Starts a peer on a free port, waits until it has answered for every task, and ends all of its processes.

    Nothing is left behind but, for a peer that serves ONNX files, those: in ``models/.onnx``, for the next start.

    Args:
        peer: which.
        python: that of the peers' virtual environment.
        models: folder with a checkpoint a task.
        threads: for the computation.
        start_timeout_s: for each preparation, and for the first answer.

    Raises:
        PeerError: it ended, or gave no answer in time; with the end of its log.
    """
    # Not resolved: a venv's Python is a link, and is the venv's only under its own name.
    python, models = python.absolute(), models.resolve()
    tasks = tuple(sorted(config.parent.name for config in models.glob("[!.]*/config.json")))
    if not tasks:
        raise PeerError(f"{models}: no checkpoints in it (folders with config.json)")
    # Home of whatever it writes: caches, sockets, logs.
    scratch = Path(tempfile.mkdtemp(prefix="peer-"))
    log = scratch / "log.txt"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {**peer.environment(threads), "TMPDIR": str(scratch), "HF_HOME": str(scratch / "huggingface")}
    try:
        for command in peer.preparation(python, models, threads):
            with _started(command, environment, scratch, log) as process:
                try:
                    failed = process.wait(start_timeout_s) != 0
                except subprocess.TimeoutExpired:
                    failed = True
            if failed:
                raise PeerError(f"{peer.name}: {' '.join(command)} failed:\n{_tail(log)}")
        port = _free_port()
        with _started(peer.command(python, models, port, threads), environment, scratch, log) as process:
            running = RunningPeer(peer, tasks, port, process.pid)
            _wait(running, process, log, start_timeout_s)
            yield running
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], scratch: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _wait(running: RunningPeer, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        if process.poll() is not None:
            raise PeerError(f"{running.peer.name} ended with {process.returncode}:\n{_tail(log)}")
        try:
            answered = running.ask(FIRST_TEXT)
        except (OSError, http.client.HTTPException, PeerError) as error:
            if isinstance(error, PeerError) and error.status is not None and error.status < 500:
                # It understood that much: waiting will not help.
                raise PeerError(f"{error}\n{_tail(log)}", error.status) from None
            # Nobody listens yet, or the models are not loaded yet.
            reason = str(error)
        else:
            if set(answered) == set(running.tasks):
                return
            reason = f"answered for {', '.join(sorted(answered))} only"
        if time.monotonic() > deadline:
            raise PeerError(f"{running.peer.name} gave no answer in {timeout_s:g} s ({reason}):\n{_tail(log)}")
        time.sleep(POLL_S)


def _processes(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Taken before it ends: afterwards nothing tells whose children they were.
    processes = _processes(process.pid)
    _signal(process.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, STOP_TIMEOUT_S)
    _signal(process.pid, signal.SIGKILL)
    for survivor in left:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, STOP_TIMEOUT_S)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL:]
