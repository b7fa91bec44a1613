"""The guard, with harmless programs in Triton's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from onetrunk.serving import guard

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def prefix() -> str:
    return f"onetrunk_test_{os.getpid()}_"


@pytest.fixture
def start(tmp_path: Path, prefix: str) -> Iterator[Start]:
    """Starts a guard over a shell script."""
    started = []

    def start(script: str, grace_s: float = 5.0) -> subprocess.Popen[bytes]:
        (tmp_path / "private").mkdir(exist_ok=True)
        arguments = [prefix, str(tmp_path / "private"), str(grace_s), "/bin/sh", "-c", script]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # closes its pipes, and waits
            process.kill()


def child_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_exits_as_its_child_does(start: Start) -> None:
    assert start("exit 7").wait(60) == 7
    assert start("kill -9 $$").wait(60) == 128 + 9


def test_closing_stdin_ends_the_child_and_clears_up(start: Start, tmp_path: Path, prefix: str) -> None:
    ours, other = Path("/dev/shm") / f"{prefix}region", Path("/dev/shm") / f"other_{prefix}"
    ours.touch()
    other.touch()
    try:
        process = start("exec sleep 60")
        child = child_of(process)
        close_stdin(process)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert is_gone(child)
        assert not ours.exists()
        assert other.exists(), "what belongs to others stays"
        assert not (tmp_path / "private").exists()
    finally:
        ours.unlink(missing_ok=True)
        other.unlink()


def test_a_child_that_will_not_stop_is_killed_after_its_grace(start: Start, tmp_path: Path) -> None:
    process = start(f"trap '' TERM; touch '{tmp_path}/trapped'; while :; do sleep 0.1; done", grace_s=0.5)
    child = child_of(process)
    deadline = time.monotonic() + 60
    while not (tmp_path / "trapped").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    close_stdin(process)
    assert process.wait(60) == 128 + signal.SIGKILL
    assert time.monotonic() - began > 0.4
    assert is_gone(child)


def test_orphans_of_a_killed_child_are_killed(start: Start) -> None:
    process = start("sleep 61 & sleep 62 & wait")
    child = child_of(process)
    grandchildren = []
    while len(grandchildren) < 2:
        grandchildren = child.children()
    child.kill()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert all(is_gone(each) for each in grandchildren)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guard_ends_all(start: Start, number: signal.Signals) -> None:
    process = start("exec sleep 60")
    child = child_of(process)
    process.send_signal(number)
    process.wait(60)
    assert is_gone(child)


def test_a_killed_guard_takes_its_child_along(start: Start) -> None:
    process = start("exec sleep 60")
    child = child_of(process)
    process.kill()
    deadline = time.monotonic() + 60
    while not is_gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_program_that_does_not_exist_leaves_nothing(start: Start, tmp_path: Path) -> None:
    arguments = ["no_such_prefix_", str(tmp_path / "private"), "1", "/no/such/program"]
    (tmp_path / "private").mkdir()
    done = subprocess.run([sys.executable, guard.__file__, *arguments], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert done.stdout == b""
    assert not (tmp_path / "private").exists()
