"""What the scenarios compare, with nothing built and nothing run."""

from types import SimpleNamespace

import pytest

from benchmarks.compare import scenarios
from benchmarks.compare.goals import best_of
from benchmarks.compare.measure import Measured, Sample
from benchmarks.compare.result import Point, Result
from benchmarks.compare.systems import Systems


class Written(Systems):
    """Says which models would be in a repository, in place of writing it."""

    def __init__(self, cores):
        self.cores = cores

    def _write(self, name, what, models):
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
        (scenarios.SINGLE, scenarios._single(Written(cores)), single),
        (scenarios.TRUNK, scenarios._trunks(Written(cores)), trunks),
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
