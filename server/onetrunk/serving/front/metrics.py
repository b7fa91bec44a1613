"""What the front counts, for Prometheus. docs/metrics.md says what each metric means."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.admission import Admission, RefusedError
from onetrunk.serving.front.parts import OWN
from onetrunk.serving.front.settings import MULTIPROCESS_FOLDER

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the counters

GRPC, HTTP = "grpc", "http"
# In place of a version, the head that is served.
LIVE = "live"

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# How a request about tasks ended, by who is at fault.
OK, CLIENT, OVERLOAD, SERVER, GONE = "ok", "client", "overload", "server", "gone"


@dataclass
class Outcome:
    """How a request about tasks ended.

    Attributes:
        value: One of the outcomes.
    """

    value: str = OK


class Metrics:
    """The metrics of the front.

    Several processes of one front keep them in files of a common folder, which `MULTIPROCESS_FOLDER` names, so that
    each of them can tell those of all.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._registry = CollectorRegistry()
        self._requests = self._counter("front_requests", "Requests by door and how they ended", "door", "status")
        self._seconds = self._histogram(
            "front_request_seconds", "Seconds from the start of a request to its answer", "door"
        )
        self._parts = self._histogram(
            "front_part_seconds", "Seconds of requests that Triton has ended, by where they passed", "part"
        )
        self._task_requests = self._counter(
            "task_requests", "Requests that asked a task, by who was at fault if they failed", "task", "outcome"
        )
        self._task_texts = self._counter(
            "task_texts", "Texts that a task was asked about and that were answered", "task"
        )
        self._task_seconds = self._histogram(
            "task_seconds", "Seconds from the front to Triton and back, of requests that were answered", "task"
        )
        self._labels = self._counter("task_labels", "Answers by label, of the JSON endpoints", "task", "label")
        self._tried = self._counter(
            "candidate_requests",
            "Requests of a candidate's share, by whether it answered",
            "task",
            "version",
            "outcome",
        )
        self._tried_seconds = self._histogram(
            "candidate_seconds", "Seconds of these requests, of the live head and of the candidate", "task", "version"
        )
        self._tried_differ = self._counter(
            "candidate_disagreements",
            "Texts that a candidate and the live head answered differently",
            "task",
            "version",
        )
        self._in_flight = self._gauge("front_in_flight", "Requests that Triton works on")
        self._waiting = self._gauge("front_waiting", "Requests that wait for their turn")
        self._pending = self._gauge("front_pending_bytes", "Size of all requests that are read, wait or are in flight")

    def count_request(self, door: str, status: str, seconds: float, parts: Mapping[str, float]) -> None:
        """Count one request.

        Args:
            door: The door through which it came.
            status: How it ended.
            seconds: How long it took.
            parts: How much of that went to which part, if Triton has answered it. What is left is the front's own.
        """
        self._show_load()
        self._requests.labels(door, status).inc()
        self._seconds.labels(door).observe(seconds)
        for part, of_part in parts.items():
            self._parts.labels(part).observe(of_part)
        if parts:
            self._parts.labels(OWN).observe(max(0.0, seconds - sum(parts.values())))

    @contextmanager
    def asked(self, tasks: Mapping[str, int]) -> Iterator[Outcome]:
        """Count one request about tasks, which the block answers.

        Args:
            tasks: Task -> the number of texts that it is asked about; the block may change what it says. The tasks must
                be known ones: each becomes a label of the metrics.
        """
        ended, began = Outcome(), time.perf_counter()
        try:
            yield ended
        except BaseException as error:
            ended.value = outcome(error)
            raise
        finally:
            seconds = time.perf_counter() - began
            for task, texts in tasks.items():
                self._task_requests.labels(task, ended.value).inc()
                if ended.value == OK:
                    self._task_texts.labels(task).inc(texts)
                    self._task_seconds.labels(task).observe(seconds)

    def answered(self, task: str, label: str) -> None:
        """Count an answer of a task."""
        self._labels.labels(task, label).inc()

    def tried(self, task: str, candidate: int, failed: bool, seconds: float, live_seconds: float, differ: int) -> None:
        """Count a request that a candidate was to answer, which the live head answered too.

        Args:
            task: The task.
            candidate: The candidate's version.
            failed: Whether the candidate failed to.
            seconds: How long the candidate took.
            live_seconds: How long the live head took.
            differ: The texts that both answered differently.
        """
        version = str(candidate)
        self._tried.labels(task, version, SERVER if failed else OK).inc()
        self._tried_differ.labels(task, version).inc(differ)
        if not failed:
            self._tried_seconds.labels(task, version).observe(seconds)
            self._tried_seconds.labels(task, LIVE).observe(live_seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format, of all processes of this front."""
        self._show_load()
        if MULTIPROCESS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _show_load(self) -> None:
        self._in_flight.set(self._admission.in_flight)
        self._waiting.set(self._admission.waiting)
        self._pending.set(self._admission.pending_bytes)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"onetrunk_{name}", help_text, registry=self._registry, multiprocess_mode="livesum")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"onetrunk_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"onetrunk_{name}", help_text, labels, buckets=_BUCKETS_S, registry=self._registry)


def outcome(error: BaseException) -> str:
    """Return who is at fault for a failure."""
    if isinstance(error, RefusedError):
        return OVERLOAD if error.status == 429 else CLIENT
    if isinstance(error, UserError):
        return CLIENT
    if isinstance(error, asyncio.CancelledError):
        return GONE
    if isinstance(error, grpc.aio.AioRpcError):
        return CLIENT if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND) else SERVER
    return SERVER


def outcome_of_status(status: int) -> str:
    """Return who is at fault for an HTTP status."""
    return OK if status < 400 else CLIENT if status < 500 else SERVER
