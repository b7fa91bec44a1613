"""What the scenarios compare, with nothing built and nothing run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.compare import names, scenarios
from benchmarks.compare.goals import best_of
from benchmarks.compare.measure import Measured, Sample
from benchmarks.compare.result import Point, Result
from benchmarks.compare.scenarios import Bench, Ours
from benchmarks.compare.shapes import GLUE, Shape, glue_shape, shipped_shape
from benchmarks.compare.systems import Systems, TritonSystem


class Written(Systems):
    """Says which models would be in a repository, in place of writing it."""

    def __init__(self, cores):
        self.cores = cores

    def _write(self, name, what, models, tasks):
        return SimpleNamespace(name=name, models=models)

    def _singles(self, count, threads, instances):
        return [(instances, threads)] * count

    def trunk_alone(self, threads, name):
        return SimpleNamespace(name=name, models=[(1, threads)])


@pytest.mark.parametrize(
    ("cores", "single", "trunks"),
    [
        (1, {"1 x 1 thread": (1, 1)}, {"1 thread": (1, 1)}),
        (2, {"1 x 2 threads": (1, 2), "2 x 1 thread": (2, 1)}, {"1 thread": (1, 1), "2 threads": (1, 2)}),
        (16, {"1 x 16 threads": (1, 16), "16 x 1 thread": (16, 1)}, {"1 thread": (1, 1), "16 threads": (1, 16)}),
    ],
)
def test_one_model_is_tried_in_all_ways_to_use_the_cores(cores, single, trunks):
    for name, made, wanted in (
        (names.SINGLE, scenarios._single(Written(cores)), single),
        (names.TRUNK, scenarios._trunks(Written(cores)), trunks),
    ):
        assert {system.name: system.models for system in made} == {
            f"{name} ({way})": [models] for way, models in wanted.items()
        }
        # The goals find them by the name before the brackets, and take the fastest.
        points = [
            Point(system.name, "", 128, 4, 1, Measured([Sample(throughput, 1.0, 2.0, 3.0)]))
            for throughput, system in enumerate(made, 1)
        ]
        assert best_of(Result("base", "", {}, {}, points), name, 128, 4) == points[-1]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 1), (12, 2), (16, 2)])
def test_eight_models_together_use_every_core(cores, threads):
    assert Written(cores).singles(8, "eight").models == [(1, threads)] * 8


def test_glue_is_served_by_its_eight_heads_whatever_else_ships(monkeypatch, tmp_path):
    for task in (*GLUE, "intent"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "head.json").touch()
    built = []
    monkeypatch.setattr(
        scenarios, "build_repository", lambda request, **_: built.append((request.output, request.tasks))
    )
    bench = Bench(tmp_path / "work", tmp_path, 1.0, 3, 2, None, lambda *_: None)
    systems = [Ours(bench, shape(tmp_path)).build("ours") for shape in (glue_shape, shipped_shape)]
    assert [system.tasks for system in systems] == [8, 9]
    assert [tasks for _, tasks in built] == [GLUE, None]
    assert built[0][0] != built[1][0]


def test_numbers_of_tasks_that_a_goal_compares_are_measured_in_one_run(monkeypatch):
    runs = []

    def build(self, name, **_):
        return TritonSystem(name, "", Path(), tasks=int(self.shape.name.removeprefix("base_")))

    def write(self, name, what, models, tasks):
        return TritonSystem(name, what, Path(), tasks)

    def measure(bench, name, title, systems, *_):
        runs.append([system.name for system in systems])
        points = [Point(system.name, "", 128, 4, system.tasks, Measured()) for system in systems]
        return Result(name, title, {}, {}, points)

    monkeypatch.setattr(scenarios, "base_shape", lambda folder, heads: Shape("base", "", None, folder))
    monkeypatch.setattr(scenarios, "_measure", measure)
    monkeypatch.setattr(scenarios.Ours, "trunk", None)
    monkeypatch.setattr(scenarios.Ours, "build", build)
    monkeypatch.setattr(Systems, "_write", write)
    monkeypatch.setattr(Systems, "_singles", lambda *_: [])
    result = scenarios.tasks(Bench(Path(), Path(), 1.0, 3, 2, None, lambda *_: None))
    (together,) = [run for run in runs if f"{names.INT8_HEADS}: 64" in run]
    assert f"{names.INT8_HEADS}: 8" in together
    assert [point.system for point in result.points] == [
        f"{kind}: {count}"
        for count in (1, 2, 4, 8, 16, 32, 64)
        for kind in (names.GROUPED, names.INT8_HEADS, *["single-task models"] * (count <= 8))
    ]
