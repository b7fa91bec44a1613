"""What the front counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from onetrunk.serving.front.admission import Admission

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the counters

GRPC, HTTP = "grpc", "http"

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass
class Record:
    """A request in progress.

    Attributes:
        status: How it ended: ``ok``, an HTTP status, or the name of Triton's gRPC status.
    """

    status: str = "ok"


class Metrics:
    """The metrics of one process of the front."""

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "onetrunk_front_requests",
            "Requests by door and how they ended",
            ("door", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "onetrunk_front_request_seconds",
            "Seconds from a request's last byte to its answer",
            ("door",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        for name, help_text, read in (
            ("in_flight", "Requests that Triton works on", lambda: admission.in_flight),
            ("waiting", "Requests that wait for their turn", lambda: admission.waiting),
            (
                "pending_bytes",
                "Size of all requests that are read, wait or are in flight",
                lambda: admission.pending_bytes,
            ),
        ):
            Gauge(f"onetrunk_front_{name}", help_text, registry=self._registry).set_function(read)

    @contextmanager
    def request(self, door: str) -> Iterator[Record]:
        """Count one request, which the block answers."""
        record, began = Record(), time.perf_counter()
        try:
            yield record
        except BaseException:
            if record.status == "ok":
                record.status = "500"
            raise
        finally:
            self._requests.labels(door, record.status).inc()
            self._seconds.labels(door).observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
