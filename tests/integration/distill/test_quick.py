"""The quick search: two heads on the best taps, the better one as a bundle; and how long searches take."""

import pytest

from onetrunk.distill import quick as quick_module
from onetrunk.distill.quick import estimate_time, quick_head
from onetrunk.distill.settings import SearchSettings
from onetrunk.nn.bundle import load_bundle

SETTINGS = SearchSettings(fork_epochs=2, batch_size=50)


@pytest.fixture
def scores(monkeypatch):
    """Makes tap 2 the best, and sets the scores of the heads by their layers."""
    of = {1: 0.7, 2: 0.8}
    real = quick_module.execute

    def execute(spec, experiment, **options):
        record = real(spec, experiment, **options)
        return record.model_copy(update={"scores": {**record.scores, record.metric: of[spec.recipe.layers]}})

    monkeypatch.setattr(quick_module, "execute", execute)
    monkeypatch.setattr(quick_module, "probe_taps", lambda *_: {0: 0.5, 1: 0.6, 2: 0.65, 3: 0.55})
    return of


@pytest.mark.parametrize(("two", "chosen"), [(0.8, (1, 2)), (0.7, (2, 1)), (0.6, (2, 1))])
def test_the_better_head_is_written_and_of_equal_ones_the_cheaper(
    scores, two, chosen, new_experiment, mood, tiny_trunk, tmp_path
):
    scores[2] = two
    result = quick_head("mood", new_experiment(mood), SETTINGS, heads=tmp_path / "heads")
    assert (result.spec.tap, result.spec.layers) == chosen
    bundle = load_bundle(tmp_path / "heads" / "mood", trunk=tiny_trunk)
    assert bundle.spec.story["tried"] == [
        *("probe on tap 0: 50.0", "probe on tap 1: 60.0", "probe on tap 2: 65.0", "probe on tap 3: 55.0"),
        *("1 layer on tap 2: 70.0", f"2 layers on tap 1: {100 * two:.1f}"),
    ]
    said, left_out = result.notes[-2:]
    assert said.startswith("accuracy of the probes by tap: 0 50.0, 1 60.0, 2 65.0, 3 55.0; of the heads: 1 layer on")
    assert left_out.startswith("left out: full fine-tuning as the reference, teachers and their students")
    assert not list((tmp_path / "heads").glob("*/*full*"))


def test_nothing_is_fine_tuned_and_nothing_trained_twice(new_experiment, mood, tmp_path):
    experiment = new_experiment(mood)
    quick_head("mood", experiment, SETTINGS, heads=tmp_path / "heads")
    records = {record.key: record for record in experiment.store}
    assert {record.spec.role for record in records.values()} == {"fork"}
    assert len(records) == experiment.trunk.depth + 2
    quick_head("mood", experiment, SETTINGS, heads=tmp_path / "heads")
    assert {record.key for record in experiment.store} == set(records)


def test_a_search_takes_longer_than_a_quick_one(new_experiment, mood, monkeypatch):
    # Times of a loaded machine say nothing: a step costs what its model is, whole or of so many layers.
    taken = iter([1.0, 3.0, 0.1, 0.7])
    monkeypatch.setattr(quick_module, "_seconds", lambda work, batches: next(taken))
    found = estimate_time(["mood"], new_experiment(mood), SETTINGS)
    trunk = (4 + 2) * 1.0  # 200 and 60 texts, 50 a batch
    assert found.search_seconds == pytest.approx(trunk + 2.8 * 3 * 4 * 3.0)
    assert found.quick_seconds == pytest.approx(trunk + 4 * ((4 * 10 + 2) * 0.1 + 10 * 0.7))


def test_batches_are_timed(new_experiment, mood):
    found = estimate_time(["mood"], new_experiment(mood), SETTINGS)
    assert found.quick_seconds > 0
    assert found.search_seconds > 0
