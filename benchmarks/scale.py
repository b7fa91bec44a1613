"""What a fleet needs: a simulation of a server's parts with batching, checked against a real server in the same run.

``python -m benchmarks.scale measure --repository model_repository`` starts a server, sends it texts at two rates at
random times, whether earlier ones are answered or not, and simulates the same arrivals. What the simulation knows of
the server is how long each part runs and what a request costs beside its parts, from requests that are sent one at a
time; how a run grows with its batch, from the load; and how many cores there are. It knows nothing of how long requests
wait, for their turn or for a core.

``python -m benchmarks.scale fleets`` computes cores and replicas from docs/results/performance/tasks.json, and
simulates a replica at the load that it is given. It starts nothing. Both need the extra ``simulation``.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import simpy
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.compare.load import Connection
from benchmarks.peers.peer import HttpRequest
from benchmarks.summary_file import set_figures
from onetrunk.admin import AdminClient
from onetrunk.protocol.names import CONFIG_FILE, MULTITASK
from onetrunk.serving import Server

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "fleet"
TASKS_JSON = ROOT / "docs" / "results" / "performance" / "tasks.json"
TEXT = "the play is very good and the actor is great but the plot is short and the film is not long"
WORKERS = 24
# The front closes connections that ask nothing.
IDLE_S = 1.0
RATES = (100, 4_000, 40_000)
TASKS = (1, 21, 64, 256)
# The share of its cores that a replica is given to do. What is left takes what comes in bursts.
UTILISATION = 0.6
CORES = 2


@dataclass(frozen=True)
class Part:
    """A model of an ensemble, as the simulation sees it.

    Attributes:
        inputs: The tensors that it waits for.
        outputs: The tensors that it gives.
        ms: The time of a run that has a core, by the number of texts in it: ``fixed + each * texts``.
        spread: Factors by which single runs differ from that, of mean 1; one is drawn for each run.
        instances: How many runs go on at a time.
        most: The most texts of a run.
        dispatch_ms: The time until a run begins though nothing else is waited for, which keeps nobody else waiting.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: tuple[float, float]
    spread: tuple[float, ...] = (1.0,)
    instances: int = 1
    most: int = 32
    dispatch_ms: float = 0.0


@dataclass(frozen=True)
class Times:
    """Quantiles of the seconds from when a text was due to be sent until its answer, in milliseconds."""

    p50_ms: float
    p99_ms: float
    texts: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        return cls(float(p50), float(p99), len(seconds))


class Cores:
    """Some cores, which all runs that go on share equally: with more runs than cores, each goes on more slowly.

    That is what the kernel's scheduler comes to. Each run has one thread.
    """

    def __init__(self, environment: simpy.Environment, cores: int) -> None:
        self._environment, self._cores = environment, cores
        # The seconds that a run has had which went on from the beginning, and when that was computed.
        self._had, self._at = 0.0, 0.0
        # Of the runs that go on: when they end, by what such a run has had then.
        self._ends: list[tuple[float, int, simpy.Event]] = []
        self._count = itertools.count()
        self._changed = environment.event()
        environment.process(self._work())

    def run(self, seconds: float) -> simpy.Event:
        """Begin a run that takes so many seconds of a core; return the event of its end."""
        self._advance()
        done = self._environment.event()
        heapq.heappush(self._ends, (self._had + seconds, next(self._count), done))
        self._wake()
        return done

    def _wake(self) -> None:
        self._changed.succeed()
        self._changed = self._environment.event()

    @property
    def _rate(self) -> float:
        return min(1.0, self._cores / max(1, len(self._ends)))

    def _advance(self) -> None:
        self._had += (self._environment.now - self._at) * self._rate
        self._at = self._environment.now

    def _work(self) -> Iterator[simpy.Event]:
        while True:
            if not self._ends:
                yield self._changed
                continue
            left = max(0.0, (self._ends[0][0] - self._had) / self._rate)
            ended = self._environment.timeout(left)
            yield ended | self._changed
            if ended.processed:
                self._advance()
                self._had = max(self._had, self._ends[0][0])
                heapq.heappop(self._ends)[2].succeed()


def simulate(
    parts: Mapping[str, Part],
    arrivals: Sequence[float],
    extra_ms: Sequence[float],
    seed: int = 0,
    cores: int | None = None,
) -> Times:
    """Let texts arrive, pass through the parts, and be answered.

    Args:
        parts: The parts by name. What none of them gives, such as ``text``, is there when a text arrives, which is
            answered when all parts are done.
        arrivals: When texts arrive, in seconds.
        extra_ms: What a text takes beside its parts; one is drawn for each text.
        seed: Of what is drawn.
        cores: The cores that runs, and what a text takes beside them, share; None if each has one of its own.
    """
    environment, generator = simpy.Environment(), random.Random(seed)
    shared = Cores(environment, cores) if cores is not None else None

    def busy(seconds: float) -> simpy.Event:
        return environment.timeout(seconds) if shared is None else shared.run(seconds)

    queues: dict[str, deque[tuple[int, simpy.Event]]] = {name: deque() for name in parts}
    woken = {name: environment.event() for name in parts}
    answered: list[float] = []

    def run(name: str, part: Part) -> Iterator[simpy.Event]:
        """One instance: it takes what waits, up to the batch's limit, as Triton's batcher does without a delay."""
        while True:
            while not queues[name]:
                yield woken[name]
            taken = [queues[name].popleft() for _ in range(min(part.most, len(queues[name])))]
            fixed, each = part.ms
            yield busy((fixed + each * len(taken)) / 1000 * generator.choice(part.spread))
            for _, done in taken:
                done.succeed()

    def enter(name: str, text: int) -> simpy.Event:
        done = environment.event()
        queues[name].append((text, done))
        woken[name].succeed()
        woken[name] = environment.event()
        return done

    def one_part(name: str, part: Part, text: int, ready: dict[str, simpy.Event]) -> Iterator[simpy.Event]:
        yield environment.all_of([ready[tensor] for tensor in part.inputs if tensor in ready])
        if part.dispatch_ms:
            yield environment.timeout(part.dispatch_ms / 1000)
        yield enter(name, text)
        for tensor in part.outputs:
            ready[tensor].succeed()

    def one_text(text: int, at: float) -> Iterator[simpy.Event]:
        yield environment.timeout(at)
        began = environment.now
        ready = {tensor: environment.event() for part in parts.values() for tensor in part.outputs}
        yield environment.all_of(
            [environment.process(one_part(name, part, text, ready)) for name, part in parts.items()]
        )
        yield busy(generator.choice(extra_ms) / 1000)
        answered.append(environment.now - began)

    for name, part in parts.items():
        for _ in range(part.instances):
            environment.process(run(name, part))
    for text, at in enumerate(arrivals):
        environment.process(one_text(text, at))
    environment.run(until=arrivals[-1] + 600)
    return Times.of(answered)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Return times at which texts arrive at random, ``rate`` a second on average."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    return [float(at) for at in np.cumsum(gaps)]


def read_parts(repository: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the parts of the ensemble that reads texts: name -> the tensors that it waits for, and gives."""
    text = (repository / MULTITASK / CONFIG_FILE).read_text(encoding="utf-8")
    steps = text_format.Parse(text, model_config_pb2.ModelConfig()).ensemble_scheduling.step
    return {step.model_name: (tuple(step.input_map.values()), tuple(step.output_map.values())) for step in steps}


class Counters:
    """What Triton and the parts have counted until now."""

    def __init__(self, server: Server, client: AdminClient, names: Sequence[str]) -> None:
        import urllib.request

        self.batches: dict[str, dict[int, tuple[int, float]]] = {}
        # Model -> requests, and the milliseconds that they took with their waits.
        self.whole: dict[str, tuple[int, float]] = {}
        self.queues: dict[str, tuple[int, float]] = {}
        for model in client.statistics():
            success = model.inference_stats.success
            requests, ms = self.whole.get(model.name, (0, 0.0))
            self.whole[model.name] = requests + success.count, ms + success.ns / 1e6
            waits, ms = self.queues.get(model.name, (0, 0.0))
            queue = model.inference_stats.queue
            self.queues[model.name] = waits + queue.count, ms + queue.ns / 1e6
            if model.name in names:
                found = self.batches.setdefault(model.name, {})
                for one in model.batch_stats:
                    ns = one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns
                    count, before = found.get(one.batch_size, (0, 0.0))
                    found[one.batch_size] = count + one.compute_infer.count, before + ns / 1e6
        with urllib.request.urlopen(server.metrics_url) as response:
            lines = response.read().decode().splitlines()
        self.buckets: dict[str, dict[float, float]] = {}
        # The front's part of a request -> its seconds, and of how many requests.
        self.front = {"own": [0.0, 0.0], "triton": [0.0, 0.0]}
        for line in lines:
            for number, suffix in enumerate(("sum", "count")):
                for part, found in self.front.items():
                    if line.startswith(f'onetrunk_front_part_seconds_{suffix}{{part="{part}"}}'):
                        found[number] = float(line.rsplit(" ", 1)[1])
            if line.startswith("onetrunk_part_seconds_bucket"):
                labels = dict(one.split("=", 1) for one in line[line.index("{") + 1 : line.index("}")].split(","))
                part, le = labels["part"].strip('"'), float(labels["le"].strip('"'))
                by_le = self.buckets.setdefault(part, {})
                by_le[le] = by_le.get(le, 0.0) + float(line.rsplit(" ", 1)[1])

    def runs(self, name: str) -> int:
        return sum(count for count, _ in self.batches.get(name, {}).values())


def fitted(before: Counters, after: Counters, name: str) -> tuple[float, float]:
    """Return the fixed and the additional milliseconds of a part's runs between two counts."""
    points = []
    for size, (count, ms) in after.batches[name].items():
        old_count, old_ms = before.batches.get(name, {}).get(size, (0, 0.0))
        if count > old_count:
            points.append((size, (ms - old_ms) / (count - old_count), count - old_count))
    sizes, means, weights = (np.array(column, float) for column in zip(*points, strict=True))
    if len(points) == 1:
        return 0.0, float(means[0] / sizes[0])
    # By how many runs there were. Neither may be negative: noise on a few large batches would make one so.
    each, fixed = np.polyfit(sizes, means, 1, w=np.sqrt(weights))
    if each < 0:
        return float(np.average(means, weights=weights)), 0.0
    if fixed < 0:
        return 0.0, float(np.average(means / sizes, weights=weights))
    return float(fixed), float(each)


def spread_of(before: Counters, after: Counters, name: str, draws: int = 400) -> tuple[float, ...]:
    """Return factors by which the runs of a part differ from their mean, from its histogram between two counts."""
    now, old = after.buckets.get(name, {}), before.buckets.get(name, {})
    edges = [edge for edge in sorted(now) if math.isfinite(edge)]
    counts = np.diff([0.0, *(now[edge] - old.get(edge, 0.0) for edge in edges)])
    if not edges or counts.sum() < 10:
        return (1.0,)
    shares = np.cumsum(counts) / counts.sum()
    values = np.interp((np.arange(draws) + 0.5) / draws, [0.0, *shares], [0.0, *edges])
    return tuple(float(value) for value in values / values.mean())


def open_loop(host: str, port: int, body: bytes, arrivals: Sequence[float]) -> list[float]:
    """Send a text at each of these times, and return the seconds from then until each was answered."""
    request, began = HttpRequest("/v1/predict", body), time.perf_counter() + 0.2
    following, lock, took = iter(arrivals), threading.Lock(), []

    def work() -> None:
        connection, used = Connection(host, port), time.perf_counter()
        try:
            while True:
                with lock:
                    at = next(following, None)
                if at is None:
                    return
                time.sleep(max(0.0, began + at - time.perf_counter() - 0.05))
                if time.perf_counter() - used > IDLE_S:
                    connection.close()
                    connection = Connection(host, port)
                time.sleep(max(0.0, began + at - time.perf_counter()))
                used = time.perf_counter()
                connection.send(request)
                connection.receive()
                took.append(time.perf_counter() - began - at)
        finally:
            connection.close()

    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(work) for _ in range(WORKERS)]:
            done.result()
    return took


def one_at_a_time(host: str, port: int, body: bytes, count: int) -> list[float]:
    """Send texts one after the other, and return the seconds of each."""
    connection, request, took = Connection(host, port), HttpRequest("/v1/predict", body), []
    for _ in range(count):
        began = time.perf_counter()
        connection.send(request)
        connection.receive()
        took.append(time.perf_counter() - began)
    connection.close()
    return took


def as_alone(part: Part, loaded: Part | None, dispatch_ms: float) -> Part:
    """Return a part as it runs while it has a core, with the growth by batch that only a load shows.

    What is counted under a load has waits for a core in it, which the simulation makes itself.
    """
    one_ms = sum(part.ms)
    if loaded is None:
        return replace(part, dispatch_ms=dispatch_ms)
    fixed, each = (one_ms * ms / sum(loaded.ms) for ms in loaded.ms)
    return replace(part, ms=(fixed, each), dispatch_ms=dispatch_ms)


def longest_path(parts: Mapping[str, Part], ms: Mapping[str, float]) -> float:
    """Return the milliseconds of the parts that a text passes one after the other, if each takes so long."""
    at: dict[str, float] = {}
    for _ in parts:
        for name, part in parts.items():
            end = max((at.get(tensor, 0.0) for tensor in part.inputs), default=0.0) + ms[name]
            at.update(dict.fromkeys(part.outputs, end))
    return max(at.values())


def mean_ms(before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]], name: str) -> float:
    """Return the mean milliseconds of a model's requests between two counts."""
    (count, ms), (old_count, old_ms) = after[name], before.get(name, (0, 0.0))
    return (ms - old_ms) / max(1, count - old_count)


def beside_parts(before: Counters, after: Counters, parts: Mapping[str, Part]) -> float:
    """Return the mean milliseconds of a request in which no part has it, nor waits for one.

    That is what the front takes, the way from it to Triton and back, and Triton's steps between parts.
    """
    with_waits = {name: mean_ms(before.whole, after.whole, name) for name in parts}
    means = {}
    for part, (seconds, count) in after.front.items():
        old_seconds, old_count = before.front[part]
        means[part] = 1000 * (seconds - old_seconds) / max(1.0, count - old_count)
    return means["own"] + max(0.0, means["triton"] - longest_path(parts, with_waits))


def measure(repository: Path, shares: Sequence[float], seconds: float) -> dict[str, object]:
    """Measure a server at some shares of what it can do, and simulate the same arrivals."""
    shape = read_parts(repository)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        host, port = server.http_url.split(":")
        body = json.dumps({"texts": [TEXT]}).encode()
        with AdminClient(server.triton_url) as client:

            def counted() -> Counters:
                time.sleep(2.5)  # parts tell their histograms once a second
                return Counters(server, client, list(shape))

            def parts_between(before: Counters, after: Counters) -> dict[str, Part]:
                return {
                    name: Part(*tensors, fitted(before, after, name), spread_of(before, after, name))
                    for name, tensors in shape.items()
                    if after.runs(name) > before.runs(name)  # a head of pairs is not asked about a text alone
                }

            one_at_a_time(host, int(port), body, 20)
            before = counted()
            alone = one_at_a_time(host, int(port), body, 100)
            idle = parts_between(before, after := counted())
            # One at a time, no text waits for another: what Triton counts as waiting then is its own.
            dispatch = {name: mean_ms(before.queues, after.queues, name) for name in idle}
            capacity = 1 / (sum(alone) / len(alone))
            beside_ms = beside_parts(before, after, idle)
            path = longest_path(idle, {name: sum(part.ms) for name, part in idle.items()})
            extra = np.array([max(0.0, value * 1000 - path) for value in sorted(alone)])
            shape_of_extra = extra / extra.mean()
            points = []
            for number, share in enumerate(shares):
                arrivals = poisson(share * capacity, seconds, number)
                before = counted()
                measured = Times.of(open_loop(host, int(port), body, arrivals))
                loaded = parts_between(before, counted())
                parts = {name: as_alone(part, loaded.get(name), dispatch[name]) for name, part in idle.items()}
                simulated = simulate(parts, arrivals, list(beside_ms * shape_of_extra), number, os.cpu_count())
                points.append(
                    {
                        "texts_per_s": round(share * capacity, 2),
                        "measured": asdict(measured),
                        "simulated": asdict(simulated),
                        "error_p50": round(simulated.p50_ms / measured.p50_ms - 1, 4),
                        "error_p99": round(simulated.p99_ms / measured.p99_ms - 1, 4),
                        "beside_parts_ms": round(beside_ms, 3),
                        "parts_ms": {name: [round(ms, 3) for ms in part.ms] for name, part in parts.items()},
                    }
                )
                print(json.dumps(points[-1]), flush=True)
    errors = [abs(float(point[key])) for point in points for key in ("error_p50", "error_p99")]  # type: ignore[arg-type]
    return {"one_at_a_time_ms": round(1000 / capacity, 2), "points": points, "simulation_error": round(max(errors), 4)}


def cost_of_tasks() -> dict[str, dict[int, float]]:
    """Return the processor milliseconds of a text by the number of tasks, of our servers and of single-task models."""
    found: dict[str, dict[int, float]] = {}
    for point in json.loads(TASKS_JSON.read_text(encoding="utf-8"))["points"]:
        cpu = [sample["cpu_ms"] for sample in point["measured"]["samples"]]
        system = point["system"].split(":")[0]
        found.setdefault(system, {})[point["tasks"]] = float(np.median(cpu))
    return found


def fleets() -> list[dict[str, object]]:
    """Return what each number of tasks needs at each rate: cores, replicas of two cores, and simulated quantiles."""
    rows = []
    for system, by_tasks in cost_of_tasks().items():
        tasks = sorted(by_tasks)
        costs = [by_tasks[count] for count in tasks]
        # From eight tasks on, all taps are in use, and another task is another head.
        many = [count for count in tasks if count >= 8]
        each = float(np.polyfit(many, [by_tasks[count] for count in many], 1)[0]) if len(many) > 1 else 0.0
        if system.startswith("single"):
            each = float(np.mean([cost / count for count, cost in by_tasks.items()]))
        for count, rate in itertools.product(TASKS, RATES):
            cpu_ms = float(np.interp(count, tasks, costs)) + each * max(0, count - max(tasks))
            cores = rate * cpu_ms / 1000 / UTILISATION
            replicas = math.ceil(cores / CORES)
            rows.append(
                {
                    "system": system,
                    "tasks": count,
                    "texts_per_s": rate,
                    "cpu_ms": round(cpu_ms, 1),
                    "cpu_ms_is": "measured" if count in by_tasks else "between" if count < max(tasks) else "beyond",
                    "cores": math.ceil(cores),
                    "replicas": replicas,
                    **asdict(simulate_replica(cpu_ms, rate / replicas)),
                }
            )
    return rows


def simulate_replica(cpu_ms: float, rate: float) -> Times:
    """Simulate one replica: a chain of two halves, each with a core, which work on different texts at the same time."""
    busy = simulated_chain(round(rate * cpu_ms / 1000 / CORES, 2))
    return Times(busy.p50_ms * cpu_ms, busy.p99_ms * cpu_ms, busy.texts)


@cache
def simulated_chain(utilisation: float) -> Times:
    """Return the times of such a chain whose texts take a millisecond. Nothing but the scale depends on that."""
    parts = {"lower": Part(("text",), ("hidden",), (0.0, 0.5)), "upper": Part(("hidden",), ("scores",), (0.0, 0.5))}
    return simulate(parts, poisson(max(utilisation, 0.01) * CORES * 1000, 2.0 / max(utilisation, 0.01), 0), [0.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "fleets"])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--seconds", type=float, default=60.0, help="the length of each load")
    parser.add_argument("--shares", default="0.3,0.6", help="rates, as shares of what one request at a time reaches")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "fleets":
        set_figures(options.output / "scale.json", {"fleets": fleets()})
        return
    found = measure(options.repository, [float(share) for share in options.shares.split(",")], options.seconds)
    set_figures(options.output / "scale.json", {"simulation": found})
    set_figures(options.output / "summary.json", {"simulation_error": found["simulation_error"]})


if __name__ == "__main__":
    main()
