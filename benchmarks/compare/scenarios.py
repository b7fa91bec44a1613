"""What is compared with what: each scenario starts its systems together and measures them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compare import names
from benchmarks.compare.kept import whole_folder
from benchmarks.compare.measure import measure_in_turn
from benchmarks.compare.names import (
    BF16,
    DISTILS,
    FUSED,
    GROUPED,
    INT8,
    INT8_HEADS,
    ONE_TRUNK,
    SEPARATE,
    SINGLE,
    SINGLES,
    TRUNK,
)
from benchmarks.compare.one_trunk import write_one_trunk
from benchmarks.compare.result import Point, Result, describe_machine
from benchmarks.compare.shapes import GLUE, Shape, base_shape, distil_trunk, glue_shape, shipped_shape, small_shape
from benchmarks.compare.systems import Systems, Target, TritonSystem, threads_text
from benchmarks.compare.texts import texts_of_length
from benchmarks.peers.checkpoints import SHAPES, write_checkpoints
from benchmarks.peers.peer import Peer
from benchmarks.peers.peers import PEERS, running_peer
from onetrunk.export.precision import parse_precision
from onetrunk.export.sessions import computes_in_bf16
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.tasks.head_spec import find_bundles, read_spec

# Numbers of tasks that are measured in one run. The goals compare 64 with 8, and a ratio is of one repeat; all seven
# at the same time would take 25 GB.
_TASKS_TOGETHER = ((1, 2, 4), (8, 64), (16, 32))


@dataclass(frozen=True)
class Bench:
    """How a comparison is run.

    Attributes:
        folder: for trunks, heads and repositories; what is there from an earlier run is used again, so that it is to
            be the same code's (kept_folder).
        heads: the bundles that ship.
        seconds: how long a measurement takes.
        repeats: how often each is measured.
        cores: how many this machine has.
        peers: the Python of the peers' virtual environment; None leaves them out.
        progress: see ProgressCallback.
    """

    folder: Path
    heads: Path
    seconds: float
    repeats: int
    cores: int
    peers: Path | None
    progress: ProgressCallback


@dataclass(frozen=True)
class Ours:
    """A trunk with heads, and the repositories that build-repo writes of it."""

    bench: Bench
    shape: Shape
    max_length: int = 128

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        return len(self.shape.tasks or find_bundles(self.shape.heads))

    @property
    def trunk(self) -> Trunk:
        """The trunk."""
        return load_trunk(self.shape.trunk)

    def build(self, name: str, *, grouped: bool = True, precision: str = "fp32") -> TritonSystem:
        """One of the repositories, under the name that it has in the results."""
        what = "a model a head" if not grouped else "--group-heads --tune"
        what += "" if precision == "fp32" else f" --precision {precision}"
        folder = self.bench.folder / "repositories" / self.shape.name / f"{_slug(name)}_{self.max_length}"
        build_repository(
            BuildRequest(
                output=folder,
                heads=self.shape.heads,
                tasks=self.shape.tasks,
                trunk=self.shape.trunk,
                max_length=self.max_length,
                group_heads=grouped,
                tune="throughput" if grouped else None,
                precision=parse_precision(precision),
                # The loss of a random head means nothing; benchmarks/precision_loss.py measures the shipped ones.
                gate=GateSettings(on=False),
            ),
            progress=self.bench.progress,
        )
        return TritonSystem(name, f"build-repo, {what}", folder, self.tasks)

    def others(self, ours: TritonSystem) -> Systems:
        """What is put together for comparison, from the separate files of one of ours."""
        folder = self.bench.folder / "systems" / self.shape.name / str(self.max_length)
        return Systems(self.trunk, ours.repository, folder, self.max_length, self.bench.cores)

    def one_trunk(self, ours: TritonSystem) -> TritonSystem:
        """The same with one trunk model."""
        folder = ours.repository.with_name(ours.repository.name + "_one_trunk")
        write_one_trunk(ours.repository, folder)
        what = "one trunk model that gives all taps' states, in place of segments"
        return replace(ours, name=ONE_TRUNK, what=what, repository=folder)


def base(bench: Bench) -> Result:
    """Eight tasks on BERT-base's shape against whole models, on the same Triton."""
    ours = Ours(bench, base_shape(bench.folder))
    separate, grouped = ours.build(SEPARATE, grouped=False), ours.build(GROUPED)
    others = ours.others(separate)
    folder = bench.folder / "systems" / "distil"
    distil = Systems(load_trunk(distil_trunk(bench.folder)), separate.repository, folder, 128, bench.cores)
    systems = [
        *(separate, grouped, ours.build(INT8_HEADS, precision="heads=int8"), ours.build(INT8, precision="int8")),
        *(*_in_bf16(ours), ours.one_trunk(grouped), others.fused(bench.cores, FUSED)),
        *(*_trunks(others), *_single(others)),
        *(others.singles(8, SINGLES), distil.singles(8, DISTILS)),
    ]
    return _measure(bench, "base", ours.shape.what, systems, ours.trunk, [128], [1, 4, 8])


def small(bench: Bench) -> Result:
    """Short texts on the default trunk, where hops and weights count most."""
    ours = Ours(bench, small_shape(bench.folder))
    separate = ours.build(SEPARATE, grouped=False)
    others = ours.others(separate)
    systems = [
        *(separate, ours.build(GROUPED), ours.build(INT8_HEADS, precision="heads=int8")),
        *(ours.build(INT8, precision="int8"), others.fused(bench.cores, FUSED), *_trunks(others), *_single(others)),
    ]
    return _measure(bench, "small", ours.shape.what, systems, ours.trunk, [32], [1, 4])


def shipped(bench: Bench) -> Result:
    """What ships for GLUE: the plan and the bundles of heads/."""
    ours = Ours(bench, glue_shape(bench.heads))
    separate = ours.build(SEPARATE, grouped=False)
    others = ours.others(separate)
    systems = [
        *(separate, ours.build(GROUPED), ours.build(INT8_HEADS, precision="heads=int8")),
        *(ours.build(INT8, precision="int8"), *_in_bf16(ours)),
        *(*_trunks(others), *_single(others), others.singles(8, SINGLES)),
    ]
    return _measure(bench, "shipped", ours.shape.what, systems, ours.trunk, [32, 128], [4])


def understanding(bench: Bench) -> Result:
    """All that ships, with the heads that understand utterances, beside GLUE's eight tasks alone."""
    eight, everything = Ours(bench, glue_shape(bench.heads)), Ours(bench, shipped_shape(bench.heads))
    systems = [
        replace(system, name=f"{system.name}: {ours.tasks}")
        for ours in (eight, everything)
        for system in (ours.build(SEPARATE, grouped=False), ours.build(GROUPED), ours.build(INT8, precision="int8"))
    ]
    some = f"{GROUPED}: {eight.tasks} asked of {everything.tasks}"
    systems.append(replace(everything.build(GROUPED), name=some, outputs=GLUE))
    result = _measure(bench, "understanding", everything.shape.what, systems, everything.trunk, [16, 32, 128], [1, 4])
    result.figures["tasks"] = everything.tasks
    return result


def tasks(bench: Bench) -> Result:
    """1 to 64 tasks on the same taps."""
    result = _empty(bench, "tasks", "BERT-base shape, one-layer heads in turn on taps 2, 4, 6, 7")
    for counts in _TASKS_TOGETHER:
        systems = []
        for count in counts:
            ours = Ours(bench, replace(base_shape(bench.folder, count), name=f"base_{count}"))
            grouped, int8_heads = ours.build(GROUPED), ours.build(INT8_HEADS, precision="heads=int8")
            systems += [replace(system, name=f"{system.name}: {count}") for system in (grouped, int8_heads)]
            if count <= 8:
                systems.append(ours.others(grouped).singles(count, f"single-task models: {count}"))
        result.points += _measure(bench, "tasks", "", systems, ours.trunk, [128], [4]).points
    result.points.sort(key=lambda point: point.tasks)
    return result


def subset(bench: Bench) -> Result:
    """Only what was asked for runs: one shallow task, one deep task, all."""
    ours = Ours(bench, base_shape(bench.folder))
    grouped = ours.build(GROUPED)
    tap = {folder.name: read_spec(folder).tap for folder in find_bundles(ours.shape.heads)}
    shallow, deep = min(tap, key=lambda task: tap[task]), max(tap, key=lambda task: tap[task])
    systems = [
        replace(grouped, name=f"one task on tap {tap[shallow]}", outputs=(shallow,)),
        replace(grouped, name=f"one task on tap {tap[deep]}", outputs=(deep,)),
        replace(grouped, name="all eight tasks"),
    ]
    result = _measure(bench, "subset", ours.shape.what + ", heads grouped", systems, ours.trunk, [128], [1, 4])
    result.figures |= {"shallow_tap": tap[shallow], "deep_tap": tap[deep]}
    return result


def lengths(bench: Bench) -> Result:
    """16 to 512 tokens."""
    result = _empty(bench, "lengths", "texts of 16 to 512 tokens, eight tasks and one ordinary model")
    for shape in (base_shape(bench.folder), small_shape(bench.folder)):
        ours = Ours(bench, shape, max_length=512)
        grouped = ours.build(GROUPED)
        systems = [
            replace(grouped, name=f"{shape.name}: {GROUPED}"),
            ours.others(grouped).single(bench.cores, 1, f"{shape.name}: {SINGLE}"),
        ]
        result.points += _measure(bench, "lengths", "", systems, ours.trunk, [16, 32, 64, 128, 256, 512], [4]).points
    return result


def hops(bench: Bench) -> Result:
    """What it costs that a part is a model of its own, on Triton with the Python-based backend."""
    ours = Ours(bench, small_shape(bench.folder))
    others = ours.others(ours.build(SEPARATE, grouped=False))
    systems = [others.empty(count, f"the tokenizer and {count} empty models") for count in (1, 9)]
    result = _measure(bench, "hops", "models that compute nothing", systems, ours.trunk, [32], [1, 4])
    for concurrency in (1, 4):
        one, nine = (result.find(system.name, 32, concurrency).measured for system in systems)
        result.figures[f"hop_cpu_ms_{concurrency}"] = (nine.median("cpu_ms") - one.median("cpu_ms")) / 8
    return result


def peers(bench: Bench) -> Result:
    """Eight tasks by what a user would run instead."""
    result = _empty(bench, "peers", "eight tasks by what a user would run instead")
    for shape, checkpoints, tokens in (
        (base_shape(bench.folder), "bert-base", 128),
        (small_shape(bench.folder), "trunk", 32),
        (base_shape(bench.folder), "distilbert", 128),
    ):
        ours = replace(Ours(bench, shape).build(GROUPED), name=f"{shape.name}: ours, heads grouped")
        trunk = load_trunk(shape.trunk)
        models = bench.folder / "checkpoints" / checkpoints
        if not models.exists():
            with whole_folder(models) as aside:
                write_checkpoints(aside, SHAPES[checkpoints])
        # One peer at a time beside ours: eight models of BERT-base take gigabytes in each.
        for peer in PEERS.values():
            if checkpoints == "distilbert" and not peer.exported:
                continue
            with ExitStack() as running:
                bench.progress(f"starting {peer.name}", 0, 1)
                targets = {
                    ours.name: running.enter_context(ours.running()),
                    f"{checkpoints}: {peer.name}": running.enter_context(_peer(bench, peer, models)),
                }
                part = _points(bench, "peers", targets, {}, trunk, [tokens], [1, 4, 8])
            for point in part:
                # Ours is measured anew beside each, under a name of its own: a ratio is of one run.
                if point.system == ours.name:
                    point = replace(point, system=f"{ours.name} (beside {checkpoints}: {peer.name})")
                result.points.append(point)
    return result


SCENARIOS: Mapping[str, Callable[[Bench], Result]] = {
    scenario.__name__: scenario
    for scenario in (base, small, shipped, understanding, tasks, subset, lengths, hops, peers)
}
assert tuple(SCENARIOS) == names.SCENARIOS


def _in_bf16(ours: Ours) -> list[TritonSystem]:
    """The grouped heads in bf16, where this machine computes in it: elsewhere they would be the fp32 ones again."""
    return [ours.build(BF16, precision="bf16")] if computes_in_bf16() else []


def _trunks(others: Systems) -> list[TritonSystem]:
    """The trunk in one thread and in one a core; the faster one is what counts."""
    return [others.trunk_alone(count, f"{TRUNK} ({threads_text(count)})") for count in sorted({1, others.cores})]


def _single(others: Systems) -> list[TritonSystem]:
    """One ordinary model in the two ways to use all cores; the faster one is what counts."""
    # Instances and the threads of each. With one core the two are one.
    ways = dict.fromkeys([(1, others.cores), (others.cores, 1)])
    return [
        others.single(threads, instances, f"{SINGLE} ({instances} x {threads_text(threads)})")
        for instances, threads in ways
    ]


def _measure(
    bench: Bench,
    name: str,
    title: str,
    systems: Sequence[TritonSystem],
    trunk: Trunk,
    tokens: Sequence[int],
    concurrencies: Sequence[int],
) -> Result:
    result = _empty(bench, name, title)
    with ExitStack() as running:
        targets = {}
        for number, system in enumerate(systems):
            bench.progress(f"{name}: starting {system.name}", number, len(systems))
            targets[system.name] = running.enter_context(system.running())
        by_name = {system.name: system for system in systems}
        result.points += _points(bench, name, targets, by_name, trunk, tokens, concurrencies)
    return result


def _points(
    bench: Bench,
    name: str,
    targets: Mapping[str, Target],
    systems: Mapping[str, TritonSystem],
    trunk: Trunk,
    tokens: Sequence[int],
    concurrencies: Sequence[int],
) -> list[Point]:
    points = []
    loads = [(length, concurrency) for length in tokens for concurrency in concurrencies]
    for done, (length, concurrency) in enumerate(loads):
        bench.progress(f"{name}: {length} tokens, {concurrency} at a time", done, len(loads))
        measured = measure_in_turn(targets, texts_of_length(trunk, length), concurrency, bench.seconds, bench.repeats)
        for system, figures in measured.items():
            known = systems.get(system)
            points.append(
                Point(
                    system,
                    known.what if known else "",
                    length,
                    concurrency,
                    targets[system].tasks,
                    figures,
                    known.weights_mb() if known else None,
                )
            )
    return points


def _empty(bench: Bench, name: str, title: str) -> Result:
    return Result(name, title, {"seconds": bench.seconds, "repeats": bench.repeats}, describe_machine())


@contextmanager
def _peer(bench: Bench, peer: Peer, models: Path) -> Iterator[Target]:
    assert bench.peers is not None
    with running_peer(peer, bench.peers, models, threads=bench.cores) as running:
        asked = running.tasks
        yield Target(running.host, running.port, running.pid, len(asked), lambda text: peer.requests(text, None, asked))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
