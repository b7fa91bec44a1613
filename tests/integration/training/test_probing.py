"""A head whose task names no tap: taps are compared once, and a finished head is found without."""

import pytest

import onetrunk.training.bundles as bundles_module
from onetrunk.training import train
from onetrunk.training.probing import best_tap, probe_epochs


@pytest.fixture
def run(mood, tiny_trunk, tmp_path):
    task = mood.model_copy(update={"recipe": mood.recipe.model_copy(update={"tap": None})})

    def call(**changes):
        places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
        return train(task, tiny_trunk, probe=True, **{**places, **changes})

    return call


@pytest.fixture
def probes(monkeypatch):
    """Makes tap 3 the best, and keeps what was asked for."""
    asked = []

    def probe(task, experiment, recipe, progress):
        asked.append(recipe.layers)
        return {0: 0.5, 1: 0.5, 2: 0.6, 3: 0.7}

    monkeypatch.setattr(bundles_module, "probe_taps", probe)
    return asked


def test_the_tap_is_that_of_the_best_probe(run, probes):
    result = run()
    assert result.spec.tap == 3
    assert (
        "tap 3 was chosen by the accuracy of short trainings on every tap (0 50.0, 1 50.0, 2 60.0, 3 70.0); "
        "--tap gives another"
    ) in result.notes
    assert probes == [1]
    assert run().already_there
    assert probes == [1], "a finished head keeps its tap"
    assert not run(force=True).already_there
    assert probes == [1, 1]


def test_taps_of_a_large_task_are_not_probed_unasked(run, probes, monkeypatch):
    monkeypatch.setattr(bundles_module, "MOST_ROWS", 100)
    result = run()
    assert result.spec.tap == 2
    assert any("in the middle of the trunk: with 200 texts" in note for note in result.notes)
    assert probes == []


def test_every_tap_is_probed(run):
    result = run()
    (note,) = (one for one in result.notes if "short trainings on every tap" in one)
    scores = note.partition("(")[2].partition(")")[0].split(", ")
    assert [one.split()[0] for one in scores] == ["0", "1", "2", "3"]
    best = max(float(one.split()[1]) for one in scores)
    assert float(scores[result.spec.tap].split()[1]) == best


def test_of_equal_taps_the_lowest_is_best():
    assert best_tap({0: 0.5, 1: 0.7, 2: 0.7}) == 1


@pytest.mark.parametrize(("rows", "epochs"), [(1, 10), (500, 10), (1200, 4), (5000, 2)])
def test_a_small_task_is_probed_longer(rows, epochs):
    assert probe_epochs(rows, 32) == epochs
