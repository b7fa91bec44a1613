"""The launcher without a Triton: what waiting does to a server that has no process yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from onetrunk.protocol.errors import ServerError
from onetrunk.serving import launcher
from onetrunk.serving.installation import Runtime
from onetrunk.serving.launcher import Server


class FakeProcess:
    """A process that runs until it is stopped."""

    pid = 42

    def __init__(self, *arguments: object) -> None:
        self.stopped = False

    def exit_status(self) -> int | None:
        return 0 if self.stopped else None

    def stop(self) -> None:
        self.stopped = True


class FakeFront:
    """A front that is told where Triton is."""

    def __init__(self, *arguments: object) -> None:
        self.folder: Path | None = None
        self.pids = [43]

    def move(self, folder: Path | None) -> None:
        self.folder = folder

    def stop(self) -> None:
        pass


@pytest.fixture
def server(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server whose process is a fake that answers at once."""
    monkeypatch.setattr(launcher, "find_triton", SimpleNamespace)
    (tmp_path / "sockets").mkdir()
    for name in ("grpc.sock:1", "http.sock", "metrics.sock"):
        (tmp_path / "sockets" / name).touch()
    monkeypatch.setattr(launcher, "make_runtime", lambda installation: Runtime(tmp_path / "sockets", "onetrunk_"))
    monkeypatch.setattr(launcher, "environment", lambda *arguments: {})
    monkeypatch.setattr(launcher, "triton_command", lambda *arguments, **options: [])
    monkeypatch.setattr(launcher, "TritonProcess", FakeProcess)
    monkeypatch.setattr(launcher, "FrontKeeper", FakeFront)
    monkeypatch.setattr(launcher, "probe_all_outputs", lambda admin, timeout_s, full_batch_tokens: None)
    return Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None)


@pytest.mark.parametrize("wait", [Server.wait, Server.wait_ready])
def test_waiting_before_the_start_leaves_a_server_that_starts(server: Server, wait: Callable[[Server], None]) -> None:
    with pytest.raises(ServerError, match="not started"):
        wait(server)
    with server:
        assert server.pid == FakeProcess.pid
    assert server.pid is None
    server.wait()  # stopped on purpose: there is no failure to report


def test_a_server_that_was_stopped_before_its_start_is_not_waited_for(server: Server) -> None:
    server.stop()
    server.wait()
    with pytest.raises(ServerError, match="stopped"):
        server.wait_ready(timeout_s=0.1)
