"""The whole benchmark: every ensemble, bucket and concurrency, one after the other."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from onetrunk.admin import AdminClient
from onetrunk.client.bench.installation import find_perf_analyzer
from onetrunk.client.bench.load import Load, run_load
from onetrunk.client.bench.samples import Sample, read_texts, sort_into_buckets
from onetrunk.client.bench.statistics import PartTimes, part_times, settled_counters
from onetrunk.client.client import Client
from onetrunk.protocol.errors import BadInput, Problem
from onetrunk.protocol.names import ENSEMBLES


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        url: host and port of the server's gRPC endpoint.
        models: the ensembles to load.
        concurrencies: how many requests at a time.
        seconds: about how long each point takes.
        texts: file of rows; None takes the package's own.
        buckets: only these; None takes every bucket that has rows.
        program: path of perf_analyzer; None looks for it.
    """

    url: str = "127.0.0.1:8001"
    models: tuple[str, ...] = ENSEMBLES
    concurrencies: tuple[int, ...] = (1, 4)
    seconds: float = 3.0
    texts: Path | None = None
    buckets: tuple[int, ...] | None = None
    program: Path | None = None


@dataclass(frozen=True)
class Point:
    """One measured combination.

    Attributes:
        model: the ensemble.
        bucket: padded length of all its rows in tokens.
        rows: how many different rows were sent.
        concurrency: how many requests were on their way at a time.
        load: what the clients saw.
        parts: what Triton counted for each part.
    """

    model: str
    bucket: int
    rows: int
    concurrency: int
    load: Load
    parts: tuple[PartTimes, ...]


@dataclass(frozen=True)
class Report:
    """All points, and what they were measured on."""

    when: str
    machine: str
    cpus: int
    server: str
    perf_analyzer: str
    trunk: str
    tasks: tuple[str, ...]
    texts: str
    seconds: float
    points: tuple[Point, ...]


def run_bench(plan: BenchPlan, progress: Callable[[str, int, int], None] = lambda *_: None) -> Report:
    """Measures every point of the plan.

    Nobody else should use the server meanwhile: Triton's counters do not tell whose request they counted.

    Args:
        plan: what to measure.
        progress: is told what is being measured, how many points are done, and of how many.

    Raises:
        OneTrunkError: the server does not answer, a request fails, or perf_analyzer is missing.
    """
    lines = read_texts(plan.texts)
    with (
        find_perf_analyzer(plan.program) as program,
        AdminClient(plan.url) as server,
        Client(plan.url, retries=0) as client,
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
            load = run_load(program, plan.url, model, samples, concurrency, plan.seconds)
            parts = part_times(before, settled_counters(server.statistics))
            points.append(Point(model, bucket, len(samples), concurrency, load, parts))
        progress("done", len(todo), len(todo))
        return Report(
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=f"{platform.system()} {platform.machine()}",
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            server=server.version(),
            perf_analyzer=program.version,
            trunk=catalogue.trunk,
            tasks=tuple(catalogue.tasks),
            texts=str(plan.texts) if plan.texts else "built in",
            seconds=plan.seconds,
            points=tuple(points),
        )


def _wanted(buckets: dict[int, list[Sample]], wanted: Sequence[int] | None) -> dict[int, list[Sample]]:
    missing = [bucket for bucket in wanted or () if bucket not in buckets]
    if missing:
        have = ", ".join(map(str, buckets))
        raise BadInput([Problem(None, f"no text has a padded length of {missing[0]} tokens; the texts fill {have}")])
    return {bucket: samples for bucket, samples in buckets.items() if wanted is None or bucket in wanted}


def _warm_up(server: AdminClient, model: str, samples: Sequence[Sample]) -> None:
    """Every row once, so that no first allocation is measured, and a row that fails is named by the server."""
    for sample in samples:
        server.infer(model, sample.inputs(model))
