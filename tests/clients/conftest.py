"""A Triton that is none: the gRPC service in this process, with the tasks, delays and faults that a test gives it."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from onetrunk.client import AsyncClient, Client

TASKS = {
    "sst2": {"kind": "classification", "form": "single", "labels": ["negative", "positive"], "metric": "accuracy"},
    "cola": {"kind": "classification", "form": "single", "labels": ["unacceptable", "acceptable"], "metric": "mcc"},
    "mnli": {"kind": "classification", "form": "pair", "labels": ["yes", "perhaps", "no"], "metric": "accuracy"},
    "stsb": {"kind": "regression", "form": "pair", "range": [0, 5], "metric": "pearson"},
}
for _task in TASKS.values():
    _task.update(tap=2, layers=1, version=1)


@dataclass
class Request:
    """One ModelInfer as it came in."""

    model: str
    rows: list[Any]
    outputs: list[str]
    cancelled: bool = False


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says of every text its length in characters, so that a test can tell whose answer it got.

    Attributes:
        tasks: what the ensemble's parameter says.
        max_batch_size: of the ensembles; larger requests are refused as Triton does.
        delay_s: how long each request takes.
        faults: (status, message) for the next requests, first come, first served; None is an answer.
        config_faults: the same for the next requests for the catalogue.
        refuse: row -> message, or None; as the tokenizer refuses a text.
        spoil: changes an answer before it is sent.
        requests: all that came.
        most_at_once: the most requests that were in work at one time.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=lambda: {name: dict(task) for name, task in TASKS.items()})
    max_batch_size: int = 8
    delay_s: float = 0.0
    faults: deque[tuple[grpc.StatusCode, str] | None] = field(default_factory=deque)
    config_faults: deque[tuple[grpc.StatusCode, str]] = field(default_factory=deque)
    refuse: Callable[[Any], str | None] = lambda row: None
    spoil: Callable[[Any], None] = lambda response: None
    requests: list[Request] = field(default_factory=list)
    config_requests: int = 0
    most_at_once: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._at_once = 0
        self._lock = threading.Lock()

    def wait_for(self, requests: int) -> None:
        """Until so many requests have come in."""
        ends = time.monotonic() + 10
        while len(self.requests) < requests:
            assert time.monotonic() < ends, f"{len(self.requests)} requests came, expected {requests}"
            time.sleep(0.01)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.config_requests += 1
        if self.config_faults:
            context.abort(*self.config_faults.popleft())
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=self.max_batch_size)
        parameter = {"schema": 1, "trunk": "t", "max_length": 16, "buckets": [8, 16], "tasks": self.tasks}
        config.parameters["onetrunk"].string_value = json.dumps(parameter)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        inputs = {
            tensor.name: _read(tensor, content)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        if "text" in inputs:
            texts = [text.decode() for text in inputs["text"]]
            rows: list[Any] = list(zip(texts, inputs.get("text_pair", [None] * len(texts)), strict=True))
        else:
            rows = [
                ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            ]
        seen = Request(request.model_name, rows, [output.name for output in request.outputs])
        finished = threading.Event()
        context.add_callback(lambda: None if finished.is_set() else setattr(seen, "cancelled", True))
        with self._lock:
            self.requests.append(seen)
            fault = self.faults.popleft() if self.faults else None
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay_s)
        finally:
            with self._lock:
                self._at_once -= 1
            finished.set()
        fault = fault or self._complaint(seen)
        if fault:
            context.abort(*fault)
        return self._answer(seen)

    def _complaint(self, seen: Request) -> tuple[grpc.StatusCode, str] | None:
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        for name in seen.outputs:
            if name not in self.tasks and name != "truncated":
                return invalid, f"unexpected inference output '{name}' for model '{seen.model}'"
        if len(seen.rows) > self.max_batch_size:
            return invalid, f"[request id: <id_unknown>] inference request batch-size must be <= {self.max_batch_size}"
        for at, row in enumerate(seen.rows):
            if message := self.refuse(row):
                return invalid, f"in ensemble 'multitask', text {at}: {message}"
        return None

    def _answer(self, seen: Request) -> Any:
        response = service_pb2.ModelInferResponse(model_name=seen.model)
        for name in reversed(seen.outputs):  # Triton keeps no order either
            if name == "truncated":
                array = np.array([[len(row[0]) > 100] for row in seen.rows])
                datatype = "BOOL"
            else:
                array = np.array([score(self.tasks[name], row) for row in seen.rows], np.float32)
                datatype = "FP32"
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        self.spoil(response)
        return response


def score(task: dict[str, Any], row: Any) -> list[float]:
    """What the fake says of a row: its length, for classification as the first label's probability."""
    length = float(len(row) if isinstance(row, list) else len(row[0]))
    if task["kind"] == "regression":
        return [length]
    labels = len(task["labels"])
    first = 1 / (1 + length)
    return [first, *[(1 - first) / (labels - 1)] * (labels - 1)]


def _read(tensor: Any, content: bytes) -> Any:
    if tensor.datatype != "BYTES":
        return np.frombuffer(content, np.int64).reshape(tuple(tensor.shape))
    values = []
    while content:
        (length,) = struct.unpack_from("<I", content)
        values.append(content[4 : 4 + length])
        content = content[4 + length :]
    assert len(values) == tensor.shape[0]
    return values


@pytest.fixture
def start_fake() -> Iterator[Callable[..., FakeTriton]]:
    """Starts a fake Triton on a port of the loopback, a free one unless it is told which."""
    servers = []

    def start(port: int = 0) -> FakeTriton:
        triton = FakeTriton()
        # Triton takes messages of any size, gRPC's own limit is 4 MiB.
        options = [("grpc.max_receive_message_length", -1)]
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        triton.url = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        server.start()
        servers.append(server)
        return triton

    yield start
    for server in servers:
        server.stop(grace=2).wait()


@pytest.fixture
def fake(start_fake: Callable[..., FakeTriton]) -> FakeTriton:
    """A fake Triton on a free port."""
    return start_fake()


class AwaitedClient:
    """The async client, used as if it were the sync one: the same tests then hold for both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self._loop.run_until_complete(getattr(self._client, name)(*args, **options))

    def __enter__(self) -> AwaitedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[Client, AwaitedClient], ids=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> type[Client]:
    """The class to make a client of."""
    return request.param
