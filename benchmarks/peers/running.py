"""A peer while it runs: started, ready, measured and gone."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from benchmarks.peers.peer import PREPARED, Peer
from onetrunk.serving import guard

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
    preparation = peer.preparation(python, models, threads)
    if preparation:
        shutil.rmtree((models / PREPARED).parent, ignore_errors=True)
    for command in preparation:
        with _started(peer, command, threads) as started:
            try:
                failed = started.guard.wait(start_timeout_s) != 0
            except subprocess.TimeoutExpired:
                failed = True
            if failed:
                raise PeerError(f"{peer.name}: {' '.join(command)} failed:\n{started.log_tail()}")
    if preparation:
        (models / PREPARED).touch()
    port = _free_port()
    with _started(peer, peer.command(python, models, port, threads), threads) as started:
        running = RunningPeer(peer, tasks, port, started.pid)
        _wait(running, started, start_timeout_s)
        yield running


@dataclass(frozen=True)
class _Started:
    guard: subprocess.Popen[bytes]
    pid: int
    log: IO[bytes]

    def log_tail(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-LOG_TAIL:]


@contextmanager
def _started(peer: Peer, command: list[str], threads: int) -> Iterator[_Started]:
    # The folder is for whatever it writes: caches, sockets. The guard removes it and ends the command, also if this
    # process is killed.
    folder = tempfile.mkdtemp(prefix="peer-")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {**peer.environment(threads), "TMPDIR": folder, "HF_HOME": f"{folder}/huggingface"}
    guarded = [sys.executable, "-I", "-S", guard.__file__, Path(folder).name, folder, str(STOP_TIMEOUT_S), *command]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            guarded,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pid = process.stdout.readline()
            started = _Started(process, int(pid or 0), log)
            if not pid:
                process.wait()
                raise PeerError(f"{peer.name}: {command[0]} could not be started:\n{started.log_tail()}")
            yield started
        finally:
            process.stdin.close()
            process.wait()


def _wait(running: RunningPeer, started: _Started, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        if started.guard.poll() is not None:
            raise PeerError(f"{running.peer.name} ended with {started.guard.returncode}:\n{started.log_tail()}")
        try:
            answered = running.ask(FIRST_TEXT)
        except (OSError, http.client.HTTPException, PeerError) as error:
            if isinstance(error, PeerError) and error.status is not None and error.status < 500:
                # It understood that much: waiting will not help.
                raise PeerError(f"{error}\n{started.log_tail()}", error.status) from None
            # Nobody listens yet, or the models are not loaded yet.
            reason = str(error)
        else:
            if set(answered) == set(running.tasks):
                return
            reason = f"answered for {', '.join(sorted(answered))} only"
        if time.monotonic() > deadline:
            raise PeerError(f"{running.peer.name} gave no answer in {timeout_s:g} s ({reason}):\n{started.log_tail()}")
        time.sleep(POLL_S)


def _processes(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
