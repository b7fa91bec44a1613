"""What dies is brought back, and what is stopped is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from onetrunk.client import Client
from onetrunk.serving import Server, ServerError

FREE_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
FREE_PORT_OPTIONS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
SERVE_REPO = [sys.executable, "-c", "from onetrunk.serving.cli import serve_repo; serve_repo()"]


def answers(ask: Callable[..., Any], **inputs: Any) -> bool:
    try:
        ask("multitask", text=["a good day"], timeout_s=60, **inputs)
    except InferenceServerException:
        return False
    return True


def seconds_until(condition: Callable[[], bool], timeout_s: float = 60) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[[Path], Path]) -> Iterator[Server]:
    """A server whose admin endpoints ask for a key: the watchdog, too, has to send it."""
    path = make_repository(tmp_path_factory.mktemp("locked") / "model_repository")
    with Server(path, **FREE_PORTS, admin_key="secret") as running:
        yield running


def test_a_dead_models_process_is_brought_back(
    locked: Server,
    asker: Callable[[Server], Any],
    kill_stub: Callable[[int, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Triton's Python backend writes __pycache__ beside model.py, whatever the environment says.
    files = {path: path.stat().st_mtime_ns for path in locked.repository.rglob("*.*") if path.is_file()}
    ask = asker(locked)
    expected = ask("multitask", text=["a good day"])
    # The same model twice: what made Triton load it the first time must not stop it the second time.
    for model in ("head_mood", "head_mood", "tokenizer", "trunk_00_01"):
        caplog.clear()
        kill_stub(locked.pid, model)
        if model == "head_mood":
            assert answers(ask, outputs=["topic"]), "the other tasks go on"
        seconds_until(lambda: len(caplog.records) > 0)
        assert answers(ask)
        assert [record.message.partition(" in ")[0] for record in caplog.records] == [f"{model} died and was reloaded"]
    found = ask("multitask", text=["a good day"])
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    assert {path: path.stat().st_mtime_ns for path in files} == files, "files stay untouched"


def test_a_server_that_dies_is_started_again(
    repository: Path, asker: Callable[[Server], Any], trace: Callable[[int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    causes = {
        ("triton", signal.SIGKILL): "exit status 137: SIGKILL",
        ("triton", signal.SIGSEGV): "Triton 24.10 dies of cancelled gRPC requests, triton-inference-server/server#7368",
        ("guard", signal.SIGKILL): "exit status -9: SIGKILL",
    }
    with Server(repository, **FREE_PORTS) as server:
        ask = asker(server)
        for (victim, number), cause in causes.items():
            caplog.clear()
            before = trace(server.pid)
            triton = before.processes[0].pid
            os.kill(triton if victim == "triton" else before.guard.pid, number)
            seconds_until(lambda old=triton: server.pid not in (None, old) and answers(ask))
            assert before.left() == [], victim
            assert cause in caplog.text
        after = trace(server.pid)
    assert after.left() == []


def test_the_admin_endpoints_ask_for_the_key_and_reading_stays_open(
    locked: Server, asker: Callable[[Server], Any]
) -> None:
    client = asker(locked).client
    with pytest.raises(InferenceServerException, match="restricted"):
        client.load_model("head_mood")
    with pytest.raises(InferenceServerException, match="restricted"):
        client.get_model_repository_index()
    client.load_model("head_mood", headers={"triton-grpc-protocol-onetrunk-admin-key": "secret"})
    assert client.get_model_config("multitask").config.name == "multitask"
    assert client.get_model_metadata("multitask").name == "multitask"
    url = f"http://{locked.http_url}/v2/repository/models/head_mood/load"
    for headers, status in (({}, 403), ({"onetrunk-admin-key": "secret"}, 200)):
        request = urllib.request.Request(url, data=b"{}", headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                found = response.status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status


@pytest.fixture
def command(repository: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running `serve-repo --json`, and what it said when it was ready."""
    arguments = [str(repository), *FREE_PORT_OPTIONS, "--json", "--log", str(tmp_path / "triton.log")]
    process = subprocess.Popen(
        # Where the tests run in the background, SIGINT is ignored from the start.
        ["env", "--default-signal=INT", *SERVE_REPO, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_also_with_a_dead_process(
    command: tuple[subprocess.Popen[str], dict[str, Any]],
    trace: Callable[[int], Any],
    kill_stub: Callable[[int, str], None],
    number: signal.Signals,
) -> None:
    process, ready = command
    everything = trace(ready["pid"])
    assert len(everything.left()) > 10, "five stubs with their regions, Triton, guard, folder"
    kill_stub(ready["pid"], "head_topic")
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    assert everything.left() == []


def test_the_ready_line_has_urls_and_tasks_and_nothing_outlives_a_killed_launcher(
    command: tuple[subprocess.Popen[str], dict[str, Any]], repository: Path, trace: Callable[[int], Any]
) -> None:
    process, ready = command
    assert ready["repository"] == str(repository)
    assert set(ready["tasks"]) == {"match", "mood", "topic"}
    with urllib.request.urlopen(f"http://{ready['http']}/v2/models/multitask/ready", timeout=60) as response:
        assert response.status == 200
    assert "successfully loaded 'head_mood'" in Path(ready["log"]).read_text(encoding="utf-8")
    everything = trace(ready["pid"])
    process.kill()
    everything.wait_until_gone(timeout_s=60)


def test_a_broken_model_is_reported_by_name_and_reason(repository: Path) -> None:
    (repository / "head_topic/1/model.onnx").write_bytes(b"broken")
    (repository / "head_mood/1/model.onnx").write_bytes((repository / "head_match/1/model.onnx").read_bytes())
    done = subprocess.run(
        [*SERVE_REPO, str(repository), *FREE_PORT_OPTIONS], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "head_topic: ONNX Runtime" in line
    assert "cannot load model.onnx" in line
    assert "head_mood: output mood: the ONNX file has no such output, only ['match']" in line
    log = Path(line.rpartition("(log: ")[2].rstrip(")"))
    assert "failed to load 'head_topic'" in log.read_text(encoding="utf-8")
    log.unlink()


def test_a_port_lost_at_the_last_moment_is_replaced(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    from dataclasses import replace

    from onetrunk.serving import launcher

    choose = launcher.choose_ports
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        choices = iter([{"metrics_port": taken}, {}])
        monkeypatch.setattr(launcher, "choose_ports", lambda wanted: replace(choose(wanted), **next(choices)))
        with Server(repository, **FREE_PORTS) as server:
            assert server.metrics_url != f"http://127.0.0.1:{taken}/metrics"
            with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
                assert response.status == 200


def test_a_head_that_answers_with_nan_is_not_ready(repository: Path) -> None:
    import numpy as np
    import onnx

    path = repository / "head_mood/1/model.onnx"
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    nan = np.full(tuple(weight.dims), np.nan, dtype=np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(nan, "weight"))
    onnx.save(model, path)
    server = Server(repository, **FREE_PORTS)
    with pytest.raises(ServerError, match=r"multitask answers mood with .*nan.*, not with finite numbers"):
        server.__enter__()
    server.log_path.unlink()


def test_waiting_for_a_server_that_never_answers_ends_with_its_reason(repository: Path) -> None:
    (repository / "head_topic/1/model.onnx").write_bytes(b"broken")
    server = Server(repository, **FREE_PORTS)
    server.start()
    with pytest.raises(ServerError, match="head_topic"):
        server.wait()
    server.log_path.unlink()


def test_waiting_without_wait_ready_watches_the_server(repository: Path, asker: Callable[[Server], Any]) -> None:
    server = Server(repository, **FREE_PORTS)
    server.start()
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    try:
        seconds_until(lambda: server._watchdog is not None)
        ask, triton = asker(server), server.pid
        os.kill(triton, signal.SIGKILL)
        seconds_until(lambda: server.pid not in (None, triton) and answers(ask))
        assert waiting.is_alive()
    finally:
        server.stop()
    waiting.join(timeout=60)
    assert not waiting.is_alive()


def test_waiting_for_a_server_that_was_not_started_does_not_hang(repository: Path) -> None:
    with pytest.raises(ServerError, match="not started"):
        Server(repository, **FREE_PORTS).wait()


def test_every_door_listens_on_ipv6(
    tmp_path: Path, make_repository: Callable[[Path], Path], asker: Callable[[Server], Any]
) -> None:
    path = make_repository(tmp_path / "model_repository")
    with Server(path, **FREE_PORTS, host="::1", admin_key="secret") as running:
        assert running.grpc_url.startswith("[::1]:")
        assert answers(asker(running))
        for url in (f"http://{running.http_url}/healthz", running.metrics_url):
            with urllib.request.urlopen(url, timeout=60) as response:
                assert response.status == 200
        with Client(running.grpc_url) as client:
            assert "mood" in client.predict(["a good day"])[0]
