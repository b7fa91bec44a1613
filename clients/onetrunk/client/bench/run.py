"""The whole benchmark: every ensemble, bucket and concurrency in turn, and Triton's statistics of each run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onetrunk.admin import AdminClient
from onetrunk.client.bench.load import run_own_load
from onetrunk.client.bench.perf_analyzer import Load, find_perf_analyzer, run_load
from onetrunk.client.bench.samples import Sample, read_texts, sort_into_buckets
from onetrunk.client.client import Client
from onetrunk.protocol.errors import BadInput
from onetrunk.protocol.names import ENSEMBLES
from onetrunk.protocol.tls import Tls


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        url: Host and port of the server's gRPC endpoint.
        models: The ensembles to measure.
        concurrencies: The numbers of requests at a time.
        seconds: About how long each point takes.
        texts: A file of rows; None for the package's own.
        buckets: The buckets to measure; None for every bucket that has rows.
        program: The path of perf_analyzer; None to search for it.
        tls: The client's side of TLS; None connects without.
        api_key: The key for a server that asks for one. With one, the load is bench-repo's own.
    """

    url: str = "127.0.0.1:8001"
    models: tuple[str, ...] = ENSEMBLES
    concurrencies: tuple[int, ...] = (1, 4)
    seconds: float = 3.0
    texts: Path | None = None
    buckets: tuple[int, ...] | None = None
    program: Path | None = None
    tls: Tls | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Point:
    """One measured combination.

    Attributes:
        model: The ensemble.
        bucket: The padded length of all its rows in tokens.
        rows: The number of different rows that were sent.
        concurrency: The number of requests at a time.
        load: Throughput and latency as the clients saw them.
        parts: The times of each part as Triton counted them.
    """

    model: str
    bucket: int
    rows: int
    concurrency: int
    load: Load
    parts: tuple[PartTimes, ...]


@dataclass(frozen=True)
class Report:
    """All points, and the machine, server and texts of the measurement.

    Attributes:
        when: When it was made.
        machine: System and processor.
        cpus: The processors that it could use.
        server: Triton's version.
        load_by: What sent the requests.
        trunk: The identity of the trunk.
        tasks: The tasks that were served.
        texts: Where the rows came from.
        seconds: About how long each point took.
        points: The points.
    """

    when: str
    machine: str
    cpus: int
    server: str
    load_by: str
    trunk: str
    tasks: tuple[str, ...]
    texts: str
    seconds: float
    points: tuple[Point, ...]


def run_bench(plan: BenchPlan, progress: Callable[[str, int, int], None] = lambda *_: None) -> Report:
    """Measure every point of the plan.

    Nothing else should use the server during the run, since Triton's counters do not tell whose requests they count.

    Args:
        plan: What to measure.
        progress: Called with what is being measured, the number of points that are done, and the number of all.

    Raises:
        BadInput: No text fills a wanted bucket, or the server's certificate has another name than its address.
        OneTrunkError: The server does not answer, a request fails, or perf_analyzer is missing.
    """
    lines = read_texts(plan.texts)
    with (
        _load_of(plan) as (load_by, run),
        AdminClient(plan.url, tls=plan.tls, api_key=plan.api_key) as server,
        Client(plan.url, retries=0, tls=plan.tls, api_key=plan.api_key) as client,
    ):
        catalogue = client.catalogue()
        buckets = _wanted(sort_into_buckets(server, catalogue, lines), plan.buckets)
        todo = [
            (model, bucket, concurrency)
            for model in plan.models
            for bucket in buckets
            for concurrency in plan.concurrencies
        ]
        points: list[Point] = []
        for model, bucket, concurrency in todo:
            progress(f"{model}, {bucket} tokens, {concurrency} at a time", len(points), len(todo))
            samples = buckets[bucket]
            _warm_up(server, model, samples)
            before = settled_counters(server.statistics)
            load = run(model, samples, concurrency)
            parts = part_times(before, settled_counters(server.statistics))
            points.append(Point(model, bucket, len(samples), concurrency, load, parts))
        progress("done", len(todo), len(todo))
        return Report(
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=f"{platform.system()} {platform.machine()}",
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            server=server.version(),
            load_by=load_by,
            trunk=catalogue.trunk,
            tasks=tuple(catalogue.tasks),
            texts=str(plan.texts) if plan.texts else "built in",
            seconds=plan.seconds,
            points=tuple(points),
        )


@contextmanager
def _load_of(plan: BenchPlan) -> Iterator[tuple[str, Callable[[str, Sequence[Sample], int], Load]]]:
    """Return what sends the requests, by name and as a function of model, rows and requests at a time."""
    if plan.api_key is not None:
        yield (
            "bench-repo's own load",
            lambda model, samples, concurrency: run_own_load(
                plan.url, model, samples, concurrency, plan.seconds, tls=plan.tls, api_key=plan.api_key
            ),
        )
        return
    if plan.tls is not None and plan.tls.server_name is not None:
        raise BadInput.of_call(
            f"perf_analyzer cannot expect a name other than the address's: give {plan.tls.server_name} in --url"
        )
    with find_perf_analyzer(plan.program) as program:
        yield (
            f"perf_analyzer {program.version}",
            lambda model, samples, concurrency: run_load(
                program, plan.url, model, samples, concurrency, plan.seconds, tls=plan.tls
            ),
        )


def _wanted(buckets: dict[int, list[Sample]], wanted: Sequence[int] | None) -> dict[int, list[Sample]]:
    missing = [bucket for bucket in wanted or () if bucket not in buckets]
    if missing:
        have = ", ".join(map(str, buckets))
        raise BadInput.of_call(f"no text has a padded length of {missing[0]} tokens; the texts fill {have}")
    return {bucket: samples for bucket, samples in buckets.items() if wanted is None or bucket in wanted}


def _warm_up(server: AdminClient, model: str, samples: Sequence[Sample]) -> None:
    """Send every row once, so that no first allocation is measured and the server names a row that fails."""
    for sample in samples:
        server.infer(model, sample.inputs(model))


@dataclass(frozen=True)
class PartTimes:
    """The times of one part of an ensemble during a run.

    Attributes:
        part: The model.
        requests: The number of requests that it answered.
        rows_a_run: The mean number of rows that Triton's batcher put into one execution.
        queue_ms: The mean time that a request waited for the part.
        compute_ms: The mean time of a request in it, including copies in and out.
    """

    part: str
    requests: int
    rows_a_run: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Counters:
    """Triton's counters of one version of a model, which only rise."""

    requests: int
    rows: int
    runs: int
    queue_ns: int
    compute_ns: int

    def since(self, earlier: Counters) -> Counters:
        """Return the difference to an earlier reading."""
        return Counters(
            self.requests - earlier.requests,
            self.rows - earlier.rows,
            self.runs - earlier.runs,
            self.queue_ns - earlier.queue_ns,
            self.compute_ns - earlier.compute_ns,
        )


ZERO = Counters(0, 0, 0, 0, 0)


def read_counters(models: Iterable[Any]) -> dict[tuple[str, str], Counters]:
    """Return (model, version) -> counters, from the ``ModelStatistics`` of a server."""
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
    """Return the counters once they stop rising: Triton counts a part's run only after it has passed the result on."""
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
    """Return the times between two readings, of the models that ran; not of ensembles, which have no queue."""
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
