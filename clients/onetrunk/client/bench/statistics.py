"""What Triton counted for each part of an ensemble during a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from onetrunk.protocol.names import ENSEMBLES


@dataclass(frozen=True)
class PartTimes:
    """One part's share of a run.

    Attributes:
        part: name of the model.
        requests: how many it answered.
        rows_a_run: mean rows that Triton's batcher put into one execution.
        queue_ms: mean wait of a request before the part.
        compute_ms: mean time of a request in it, copying in and out included.
    """

    part: str
    requests: int
    rows_a_run: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Counters:
    """Triton's counters of one model version, which only ever rise."""

    requests: int
    rows: int
    runs: int
    queue_ns: int
    compute_ns: int

    def since(self, earlier: Counters) -> Counters:
        """What was added."""
        return Counters(
            self.requests - earlier.requests,
            self.rows - earlier.rows,
            self.runs - earlier.runs,
            self.queue_ns - earlier.queue_ns,
            self.compute_ns - earlier.compute_ns,
        )


ZERO = Counters(0, 0, 0, 0, 0)


def read_counters(models: Iterable[Any]) -> dict[tuple[str, str], Counters]:
    """(Model, version) -> counters, from the ``ModelStatistics`` of a server."""
    counters = {}
    for model in models:
        times = model.inference_stats
        counters[model.name, model.version] = Counters(
            requests=times.success.count,
            rows=model.inference_count,
            runs=model.execution_count,
            queue_ns=times.queue.ns,
            compute_ns=times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns,
        )
    return counters


def settled_counters(statistics: Callable[[], Iterable[Any]], limit_s: float = 5.0) -> dict[tuple[str, str], Counters]:
    """The counters once they stand still: Triton counts a part's run only after it has passed on the answer."""
    latest = read_counters(statistics())
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        time.sleep(0.2)
        earlier, latest = latest, read_counters(statistics())
        if earlier == latest:
            break
    return latest


def part_times(
    before: dict[tuple[str, str], Counters], after: dict[tuple[str, str], Counters]
) -> tuple[PartTimes, ...]:
    """The times between two readings, for the models that ran. The ensembles are left out: they have no queue."""
    parts = []
    for (name, version), counters in sorted(after.items()):
        added = counters.since(before.get((name, version), ZERO))
        if name in ENSEMBLES or added.requests <= 0 or added.runs <= 0:
            continue
        per_request_ms = 1e-6 / added.requests
        parts.append(
            PartTimes(
                part=name,
                requests=added.requests,
                rows_a_run=added.rows / added.runs,
                queue_ms=added.queue_ns * per_request_ms,
                compute_ms=added.compute_ns * per_request_ms,
            )
        )
    return tuple(parts)
