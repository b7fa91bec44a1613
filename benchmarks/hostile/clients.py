"""Clients that behave: every answer is compared with that of an idle server."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from onetrunk.export.batches import parity_texts
from onetrunk.protocol.names import MULTITASK

TOLERANCE = 1e-5
ROWS = [(text, pair) for text, pair in parity_texts() if len(text) + len(pair) < 300][:16]
# A request that is answered later than this has failed, whatever the answer.
PATIENCE_S = 60.0

References = dict[str, list]
"""Task -> the scores of each of `ROWS`, as lists."""


@dataclass
class Tally:
    """What well-behaved clients saw."""

    sent: int = 0
    failed: Counter = field(default_factory=Counter)  # by message
    wrong: Counter = field(default_factory=Counter)  # by task
    largest: float = 0.0
    seconds: list = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add another client's counts."""
        self.sent += other.sent
        self.failed.update(other.failed)
        self.wrong.update(other.wrong)
        self.largest = max(self.largest, other.largest)
        self.seconds += other.seconds

    @property
    def bad(self) -> int:
        """The requests that were not answered, and the answers that were wrong."""
        return sum(self.failed.values()) + sum(self.wrong.values())

    def record(self) -> dict:
        """The counts, for a report."""
        p50, p99 = np.percentile(self.seconds or [0.0], [50, 99])
        return {
            "sent": self.sent,
            "failed": sum(self.failed.values()),
            "wrong": sum(self.wrong.values()),
            "messages": dict(self.failed.most_common(5)),
            "largest_difference": self.largest,
            "p50_ms": round(1e3 * p50),
            "p99_ms": round(1e3 * p99),
        }


class GoodClient:
    """One client with both protocols. It tries nothing twice."""

    def __init__(self, ready: dict, seed: int, references: References | None = None) -> None:
        self._grpc = InferenceServerClient(ready["grpc"])
        self._http_address = ready["http"]
        self._http: http.client.HTTPConnection | None = None
        self._random = random.Random(seed)
        self._references = references or {}
        self.tally = Tally()

    def ask(self, rows: list[int], tasks: list[str], timeout_s: float | None = PATIENCE_S) -> dict:
        """Ask over gRPC; return task -> scores of the rows."""
        inputs = []
        for name, column in (("text", 0), ("text_pair", 1)):
            values = np.array([[ROWS[row][column].encode()] for row in rows], dtype=np.object_)
            tensor = InferInput(name, [len(rows), 1], "BYTES")
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        outputs = [InferRequestedOutput(task) for task in tasks]
        answer = self._grpc.infer(MULTITASK, inputs, outputs=outputs, client_timeout=timeout_s)
        return {task: answer.as_numpy(task) for task in tasks}

    def ask_over_http(self, rows: list[int], tasks: list[str]) -> dict:
        """Ask over HTTP; return task -> scores of the rows."""
        body = {
            "inputs": [
                {"name": name, "shape": [len(rows), 1], "datatype": "BYTES", "data": [ROWS[row][i] for row in rows]}
                for i, name in enumerate(("text", "text_pair"))
            ],
            "outputs": [{"name": task} for task in tasks],
        }
        if self._http is None:
            self._http = http.client.HTTPConnection(self._http_address, timeout=PATIENCE_S)
        try:
            self._http.request("POST", f"/v2/models/{MULTITASK}/infer", json.dumps(body))
            response = self._http.getresponse()
            content = response.read()
        except Exception:
            self._http.close()
            self._http = None
            raise
        if response.status != 200:
            raise OSError(f"HTTP {response.status}: {content[:200]!r}")
        outputs = {output["name"]: output for output in json.loads(content)["outputs"]}
        return {
            task: np.array(outputs[task]["data"], dtype=np.float32).reshape(outputs[task]["shape"]) for task in tasks
        }

    def step(self) -> None:
        """Send one request and check its answer."""
        rows = self._random.sample(range(len(ROWS)), self._random.randint(1, 4))
        tasks = self._random.sample(sorted(self._references), self._random.randint(1, 3))
        ask = self.ask if self._random.random() < 0.6 else self.ask_over_http
        self.tally.sent += 1
        began = time.monotonic()
        try:
            found = ask(rows, tasks)
        except Exception as error:
            self.tally.failed[f"{type(error).__name__}: {error}"[:200]] += 1
            return
        self.tally.seconds.append(time.monotonic() - began)
        for task in tasks:
            worst = max(
                difference(scores, self._references[task][row]) for scores, row in zip(found[task], rows, strict=True)
            )
            self.tally.largest = max(self.tally.largest, worst)
            if not worst <= TOLERANCE:
                self.tally.wrong[task] += 1


def difference(scores: np.ndarray, reference: list) -> float:
    """The greatest difference of a text's scores; of those by token, over the tokens of the shorter bucket."""
    expected = np.asarray(reference, dtype=np.float32)
    width = min(len(scores), len(expected))
    return float(np.abs(scores[:width] - expected[:width]).max())


def idle_answers(ready: dict) -> References:
    """Ask for every task of every text, alone, while nobody else asks."""
    client = GoodClient(ready, 0)
    tasks = sorted(ready["tasks"])
    found: References = {task: [] for task in tasks}
    for row in range(len(ROWS)):
        for task, scores in client.ask([row], tasks).items():
            found[task].append(scores[0].tolist())
    return found


def in_threads(run: Callable[[Any], None], each: Iterable[Any]) -> None:
    """Run something for each of some values, all at a time, and wait for all."""
    threads = [threading.Thread(target=run, args=(one,)) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def good_clients(ready: dict, references: References, count: int, stop: threading.Event, pause_s: float = 0.0) -> Tally:
    """Let well-behaved clients ask until they are stopped; return what they saw."""
    clients = [GoodClient(ready, seed, references) for seed in range(count)]

    def run(client: GoodClient) -> None:
        while not stop.is_set():
            client.step()
            if pause_s:
                stop.wait(pause_s)

    in_threads(run, clients)
    total = Tally()
    for client in clients:
        total.add(client.tally)
    return total
