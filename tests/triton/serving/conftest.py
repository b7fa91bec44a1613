"""A real Triton on the hand-made repository."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from onetrunk.nn.trunk import Trunk
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from onetrunk.tasks import Recipe, Task
from onetrunk.training import train
from tests.fixtures.tasks import mood_rows, write_rows


@pytest.fixture
def repository(handmade_repository: Path) -> Path:
    """The repository that these tests serve."""
    return handmade_repository


@pytest.fixture(scope="session")
def mood_repository(tiny_trunk: Trunk, tiny_trunk_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one head that was trained on moods, and so has a reference of its answers on dev data."""
    folder = tmp_path_factory.mktemp("drift")
    write_rows(folder / "train.jsonl", mood_rows(300, seed=1))
    write_rows(folder / "dev.jsonl", mood_rows(300, seed=2))
    recipe = Recipe(tap=1, layers=1, epochs=3, batch_size=16, learning_rate=3e-3, max_length=32)
    task = Task(name="mood", labels=("bad", "good"), train="train.jsonl", dev="dev.jsonl", folder=folder, recipe=recipe)
    heads = folder / "heads"
    result = train(task, tiny_trunk, heads=heads, cache=folder / "cache", device="cpu", trunk_dtype="fp32")
    assert result.spec.reference is not None
    build_repository(BuildRequest(output=folder / "repository", heads=heads, trunk=tiny_trunk_folder, max_length=32))
    return folder / "repository"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[[Path], Path]) -> Iterator[Server]:
    """One server for all tests that do no harm to it."""
    path = make_repository(tmp_path_factory.mktemp("served") / "model_repository")
    # No probes of its own: a test counts what ran.
    with Server(path, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url) as connection:
        yield connection


class Asker:
    """Asks a server with plain lists; answers are arrays by output name."""

    def __init__(self, client: InferenceServerClient) -> None:
        self.client = client

    def __call__(
        self, model: str, outputs: list[str] | None = None, timeout_s: float = 60.0, **inputs: Any
    ) -> dict[str, np.ndarray]:
        tensors = []
        for name, value in inputs.items():
            if name.startswith("text"):
                raw = [text if isinstance(text, bytes) else text.encode() for text in value]
                array, kind = np.array(raw, dtype=np.object_).reshape(-1, 1), "BYTES"
            else:
                array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
                kind = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}[array.dtype.name]
            tensor = InferInput(name, list(array.shape), kind)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = None if outputs is None else [InferRequestedOutput(name) for name in outputs]
        result = self.client.infer(model, tensors, outputs=wanted, client_timeout=timeout_s)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


@pytest.fixture(scope="session")
def ask(client: InferenceServerClient) -> Asker:
    return Asker(client)


@pytest.fixture
def asker() -> Iterator[Callable[[Server], Asker]]:
    """Makes an `ask` for a server of the test's own."""
    connections = []

    def connect(server: Server) -> Asker:
        connections.append(InferenceServerClient(server.grpc_url))
        return Asker(connections[-1])

    yield connect
    for connection in connections:
        connection.close()


class Trace:
    """What one Triton has on this machine: processes, shared memory, its private folder."""

    def __init__(self, triton_pid: int) -> None:
        triton = psutil.Process(triton_pid)
        prefix = next(part for part in triton.cmdline() if "shm-region-prefix-name=" in part).partition("name=")[2]
        backends = next(part for part in triton.cmdline() if "--backend-directory=" in part).partition("=")[2]
        self.shm_prefix = prefix
        self.folder = Path(backends).parent
        self.guard = triton.parent()
        self.processes = [triton, self.guard, *triton.children()]

    def left(self) -> list[str]:
        """All of it that is still there."""
        processes = [str(process) for process in self.processes if process and process.is_running()]
        regions = [path.name for path in Path("/dev/shm").glob(f"{self.shm_prefix}*")]
        return processes + regions + ([str(self.folder)] if self.folder.exists() else [])

    def wait_until_gone(self, timeout_s: float) -> None:
        wait_for(lambda: not self.left(), timeout_s, lambda: f"left behind: {self.left()}")


@pytest.fixture
def trace() -> Callable[[int], Trace]:
    return Trace


def wait_for(condition: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.05)


@pytest.fixture
def kill_stub() -> Callable[[int, str], None]:
    """Kills a model's process with SIGKILL."""

    def kill(triton_pid: int, model: str) -> None:
        for process in psutil.Process(triton_pid).children():
            if process.status() != psutil.STATUS_ZOMBIE and f"/{model}/1/" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return
        raise AssertionError(f"{model} has no process")

    return kill
