"""A model that hangs is noticed within ten seconds, well within twenty, and its neighbours answer all the while."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.serving import Server
from onetrunk.serving.shared_memory import MIB, region_bytes
from onetrunk.serving.stubs import StubProcess, stub_processes

pytestmark = pytest.mark.hostile

FREE_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
NOTICED_S, WELL_S = 10.0, 20.0

# A head that answers rightly until a file appears, and then hangs in one of two ways.
TRAP = """
import os, threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        if os.path.exists({loop!r}):
            os.remove({loop!r})
            while True:
                pass
        if os.path.exists({wait!r}):
            os.remove({wait!r})
            threading.Event().wait()
        def answer(request):
            rows = len(pb_utils.get_input_tensor_by_name(request, "attention_mask").as_numpy())
            value = pb_utils.Tensor("topic", np.zeros((rows, 3), np.float32))
            return pb_utils.InferenceResponse([value])
        return [answer(request) for request in requests]
"""


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a file springs a trap."""
    return tmp_path_factory.mktemp("traps")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[[Path], Path], traps: Path
) -> Iterator[Server]:
    """A server whose head `topic` is a trap."""
    path = make_repository(tmp_path_factory.mktemp("hangs") / "model_repository")
    config = path / "head_topic/config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    (path / "head_topic/1/model.onnx").unlink()
    (path / "head_topic/1/model.py").write_text(TRAP.format(loop=str(traps / "loop"), wait=str(traps / "wait")))
    with Server(path, **FREE_PORTS) as running:
        yield running


class Clients:
    """One client a task, each asking some thirty times a second."""

    def __init__(self, server: Server, tasks: list[str]) -> None:
        self.answered = dict.fromkeys(tasks, 0)
        self.failed = dict.fromkeys(tasks, 0)
        self._server = server
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[task], daemon=True) for task in tasks]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask(self, task: str) -> None:
        # Patient, since an impatient client would end Triton: it dies of cancelled requests.
        with AdminClient(self._server.grpc_url, timeout_s=120) as admin:
            while not self._done.wait(0.03):
                try:
                    admin.ask("multitask", [("a good day", "")], [task])
                    self.answered[task] += 1
                except OneTrunkError:
                    self.failed[task] += 1


def stub(server: Server, model: str) -> StubProcess:
    assert server.pid is not None
    return next(found for found in stub_processes(server.pid) if found.stub.model == model)


def seconds_until(condition: Callable[[], bool], timeout_s: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s
        time.sleep(0.05)
    return time.monotonic() - began


def check_outage(
    hang: Callable[[], None], clients: Clients, victim: str, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    """Lets a model hang, and checks how long it took until it was noticed, and until it answered again."""
    neighbours = [task for task in clients.answered if task != victim]
    seconds_until(lambda: all(clients.answered.values()), 60)
    caplog.clear()
    hang()
    noticed_s = seconds_until(lambda: any(" hangs: " in record.message for record in caplog.records), WELL_S)
    seconds_until(lambda: any(" hung and was reloaded" in record.message for record in caplog.records), WELL_S)
    before = dict(clients.answered)
    well_s = noticed_s + seconds_until(lambda: clients.answered[victim] > before[victim], WELL_S)
    assert f"head_{victim} hangs: {reason}" in caplog.records[0].message
    assert noticed_s <= NOTICED_S
    assert well_s <= WELL_S
    assert {task: clients.failed[task] for task in neighbours} == dict.fromkeys(neighbours, 0)
    assert all(clients.answered[task] > 20 for task in neighbours)


def test_a_stopped_process_under_load(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Clients(server, ["mood", "topic", "match"]) as clients:
        check_outage(
            lambda: os.kill(stub(server, "head_mood").pid, signal.SIGSTOP),
            clients,
            "mood",
            caplog,
            "its process is stopped by a signal",
        )


@pytest.mark.parametrize(
    ("trap", "reason"), [("wait", "its process did nothing for 3 s"), ("loop", "its process used ")]
)
def test_a_model_that_never_answers_under_load(
    server: Server, caplog: pytest.LogCaptureFixture, traps: Path, trap: str, reason: str
) -> None:
    with Clients(server, ["mood", "topic", "match"]) as clients:
        check_outage((traps / trap).touch, clients, "topic", caplog, reason)


def test_an_idle_process_that_is_stopped(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for model in ("trunk_00_01", "tokenizer"):
        caplog.clear()
        os.kill(stub(server, model).pid, signal.SIGSTOP)
        seconds_until(lambda: len(caplog.records) > 0, NOTICED_S)
        seconds_until(lambda: len(caplog.records) > 1, WELL_S)
        assert f"{model} hung and was reloaded" in caplog.records[1].message
        with Clients(server, ["mood"]) as clients:
            seconds_until(lambda c=clients: c.answered["mood"] > 0, 60)
            assert clients.failed["mood"] == 0


def test_shared_memory_that_long_texts_took_is_given_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    texts = np.array([[b"good " * 150_000]] * 32, dtype=np.object_)
    assert server._running is not None
    # Not through the front, whose limits are smaller.
    with AdminClient(server._running.sockets.grpc, timeout_s=120) as admin:
        admin.infer("multitask", {"text": texts}, ["truncated"])
    assert region_bytes(stub(server, "tokenizer").region) > 20 * MIB
    seconds_until(lambda: region_bytes(stub(server, "tokenizer").region) <= MIB, 60)
    seconds_until(lambda: len(caplog.records) > 0, 60)  # it is told once the model is loaded again
    time.sleep(3)
    (record,) = caplog.records
    assert "tokenizer held " in record.message
    assert "MiB of shared memory (its share is 9 MiB) and was reloaded" in record.message


def test_a_stopped_triton_is_restarted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    triton = server.pid
    assert triton is not None
    os.kill(triton, signal.SIGSTOP)
    seconds_until(lambda: server.pid not in (None, triton), NOTICED_S)
    with Clients(server, ["mood"]) as clients:
        seconds_until(lambda: clients.answered["mood"] > 0, WELL_S)
    assert not psutil.pid_exists(triton)
    assert "Triton hangs: its process is stopped by a signal" in caplog.text
