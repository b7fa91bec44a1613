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
from tests.fixtures.ports import free_ports

pytestmark = pytest.mark.hostile


def settings(**ports: int) -> FrontSettings:
    return FrontSettings(host="127.0.0.1", admin_key=SecretStr("a-key-that-shows"), **(free_ports() | ports))


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
        with urllib.request.urlopen(f"http://127.0.0.1:{keeper._settings.http_port}/healthz", timeout=60) as answer:
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
        for pid in keeper.pids + other.pids:
            for name in ("cmdline", "environ"):
                assert b"a-key-that-shows" not in Path(f"/proc/{pid}/{name}").read_bytes()
    finally:
        other.stop()


@pytest.mark.parametrize("trouble", ["killed", "stopped", "grown"])
def test_a_front_in_trouble_is_replaced(
    keeper: FrontKeeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    assert status(keeper) == 503, "there is no Triton, and it says so"
    (before,) = keeper.pids
    if trouble == "grown":
        keeper._processes[0]._most_bytes = 1
    elif trouble == "killed":
        os.kill(before, signal.SIGKILL)
    else:
        os.kill(before, signal.SIGSTOP)
        # Only now, since one that is well may be silent for as long on a busy machine.
        monkeypatch.setattr(front_process, "SILENCE_S", 2.5)
    until(lambda: keeper.pids != [before] and status(keeper) == 503)
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


def test_workers_share_ports_limits_and_metrics(tmp_path: Path) -> None:
    wanted = settings()
    keeper = FrontKeeper(wanted, tmp_path / "front.log", workers=3)
    try:
        assert len(set(keeper.pids)) == 3
        assert keeper._settings.limits.max_in_flight == -(-wanted.limits.max_in_flight // 3)
        assert {status(keeper) for _ in range(30)} == {503}
        url = f"http://127.0.0.1:{wanted.http_port}"
        for _ in range(20):  # each in a connection of its own, which any of them may get
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{url}/v2/health/ready", timeout=60)
        with urllib.request.urlopen(f"http://127.0.0.1:{wanted.metrics_port}/metrics", timeout=60) as answer:
            assert 'onetrunk_front_requests_total{door="http",status="503"} 20.0' in answer.read().decode()
        before = keeper.pids
        os.kill(before[1], signal.SIGKILL)
        until(lambda: len(set(keeper.pids) - set(before)) == 1)
        assert [keeper.pids[0], keeper.pids[2]] == [before[0], before[2]]
    finally:
        keeper.stop()
    assert {status(keeper) for _ in range(3)} == {0}


def test_what_a_dead_process_had_in_work_is_counted_no_more(tmp_path: Path) -> None:
    running = FrontKeeper(settings(), tmp_path / "front.log", workers=2)
    try:
        assert running._metrics is not None
        folder, before = Path(running._metrics.name), running.pids

        def of(pid: int) -> list[Path]:
            return list(folder.glob(f"gauge_live*_{pid}.db"))

        def both_have_answered() -> bool:
            status(running)
            return all(map(of, before))

        until(both_have_answered)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in running.pids)
        assert of(before[0]) == []
    finally:
        running.stop()
