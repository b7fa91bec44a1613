"""Running systems measured in turn, so that a load on the machine that comes and goes meets all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.compare.load import ask, run_load
from benchmarks.compare.systems import Target
from onetrunk.serving.stubs import parse_stub


@dataclass(frozen=True)
class Sample:
    """One measurement of one system.

    Attributes:
        throughput: texts answered a second, for all the tasks that were asked for.
        p50_ms: half of the texts were answered within this time.
        p99_ms: 99 in 100 were.
        cpu_ms: processor time that the system's processes took for a text, all cores together. It depends less on
            what else the machine does than the other figures.
    """

    throughput: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass
class Measured:
    """A system under one load.

    Attributes:
        samples: one a repeat.
        memory_mb: of all its processes, after the load; memory that several share counts once.
        parts_mb: model -> memory of its process, for a system on Triton.
    """

    samples: list[Sample] = field(default_factory=list)
    memory_mb: float = 0.0
    parts_mb: dict[str, float] = field(default_factory=dict)

    def median(self, what: str) -> float:
        """The median over the repeats of one of a sample's figures."""
        return float(statistics.median(getattr(sample, what) for sample in self.samples))


def measure_in_turn(
    targets: Mapping[str, Target],
    texts: Sequence[str],
    concurrency: int,
    seconds: float,
    repeats: int,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Measured]:
    """Every repeat measures each system once, in an order of its own.

    Args:
        targets: name -> a running system.
        texts: what is asked about, round and round.
        concurrency: how many texts are on their way at a time.
        seconds: how long a measurement takes.
        repeats: how often each is measured.
        progress: is told what is measured.

    Raises:
        ServerError: a request failed.
    """
    requests = {name: [target.requests(text) for text in texts] for name, target in targets.items()}
    found = {name: Measured() for name in targets}
    order, shuffle = list(targets), random.Random(0)
    for name, target in targets.items():
        # No first allocation is measured, nor a text that cannot be answered.
        for request in requests[name][:2]:
            ask(target.host, target.port, request)
        run_load(target.host, target.port, requests[name], concurrency, min(1.0, seconds))
    for _ in range(repeats):
        shuffle.shuffle(order)
        for name in order:
            progress(name)
            target = targets[name]
            before = cpu_seconds(target.pid)
            load = run_load(target.host, target.port, requests[name], concurrency, seconds)
            used = cpu_seconds(target.pid) - before
            found[name].samples.append(Sample(load.throughput, load.p50_ms, load.p99_ms, 1e3 * used / load.texts))
    for name, target in targets.items():
        found[name].memory_mb, found[name].parts_mb = memory_mb(target.pid)
    return found


def ratios(ours: Measured, other: Measured, what: str = "throughput") -> tuple[float, float, float]:
    """Ours over the other's: median, least and greatest of the repeats, each repeat compared with itself."""
    found = [getattr(a, what) / getattr(b, what) for a, b in zip(ours.samples, other.samples, strict=True)]
    return statistics.median(found), min(found), max(found)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its descendants have taken."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in _family(pid)))


def memory_mb(pid: int) -> tuple[float, dict[str, float]]:
    """Memory of a process and its descendants (proportional set size), and that of each Triton model by name."""
    total = 0.0
    parts: dict[str, float] = {}
    for process in _family(pid):
        size = process.memory_full_info().pss / 1e6
        total += size
        stub = parse_stub(process.cmdline())
        if stub is not None:
            parts[stub.model] = parts.get(stub.model, 0.0) + size
    return total, parts


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
