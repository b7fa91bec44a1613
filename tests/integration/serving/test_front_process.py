"""The front under its launcher: what is noticed, and what replaces it."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from onetrunk.serving import front_process
from onetrunk.serving.command import PortTakenError
from onetrunk.serving.front.settings import FrontSettings
from onetrunk.serving.front_process import FrontKeeper

pytestmark = pytest.mark.hostile


def settings(**ports: int) -> FrontSettings:
    found = {}
    for name in ("http_port", "grpc_port", "metrics_port"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found[name] = probe.getsockname()[1]
    return FrontSettings(host="127.0.0.1", admin_key=SecretStr("a-key-that-shows"), **(found | ports))


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[FrontKeeper]:
    running = FrontKeeper(settings(), tmp_path / "front.log")
    yield running
    running.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(keeper: FrontKeeper) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{keeper._settings.http_port}/healthz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_its_key_is_in_no_command_line_and_no_environment(
    keeper: FrontKeeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "a-key-that-shows")
    other = FrontKeeper(settings(), tmp_path / "other.log")
    try:
        for pid in (keeper.pid, other.pid):
            for name in ("cmdline", "environ"):
                assert b"a-key-that-shows" not in Path(f"/proc/{pid}/{name}").read_bytes()
    finally:
        other.stop()


@pytest.mark.parametrize("trouble", ["killed", "stopped", "grown"])
def test_a_front_in_trouble_is_replaced(
    keeper: FrontKeeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    assert status(keeper) == 503, "there is no Triton, and it says so"
    before = keeper.pid
    monkeypatch.setattr(front_process, "SILENCE_S", 2.5)
    if trouble == "grown":
        keeper._process._most_bytes = 1
    else:
        os.kill(before, signal.SIGKILL if trouble == "killed" else signal.SIGSTOP)
    until(lambda: keeper.pid != before and status(keeper) == 503)
    said = {"killed": "died (exit status -9)", "stopped": "was silent for", "grown": "and may hold 0"}[trouble]
    assert said in caplog.text


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        for name in ("http_port", "grpc_port", "metrics_port"):
            with pytest.raises(PortTakenError, match=f"^port {taken} is in use$"):
                FrontKeeper(settings(**{name: taken}), tmp_path / "front.log")
