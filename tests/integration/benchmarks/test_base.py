"""Work on a task of the base-size study: each step leaves its records at once, and is not done again."""

import json
import shutil

import pytest

import benchmarks.base.__main__ as base
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import read_trials
from onetrunk.progress import silent

SETTINGS = SearchSettings(epochs=1, probe_epochs=1, fork_epochs=1, folded_epochs=1, student_layers=(1,), depths=1)


@pytest.fixture
def work(new_experiment, mood, second, tmp_path, monkeypatch):
    """Works on mood as in a process that has just started; returns what each page was written after."""
    monkeypatch.setattr(SearchSettings, "for_width", lambda width: SETTINGS)
    written = []

    def record(study):
        written.append(sorted(path.name for path in (study / "runs").glob("mood.*.json")))

    monkeypatch.setattr(base, "write_report", record)

    def work_on(*steps, seeds=1):
        base.work_on("mood", new_experiment(mood, second), tmp_path, steps, seeds, silent)
        return written

    return work_on


def test_steps_leave_records_at_once_and_are_not_done_again(work, fits, tmp_path):
    written = work("full", "search", seeds=2)
    assert written == [["mood.baseline.json"]] * 2 + [["mood.baseline.json", "mood.search.json"]]
    assert len(read_trials(tmp_path / "runs" / "mood.baseline.json").trials) == 2
    assert read_trials(tmp_path / "runs" / "mood.search.json").complete
    begun = len(fits)
    shutil.rmtree(tmp_path / "cache")
    work("full", "search", seeds=2)
    assert len(fits) == begun


def test_steps_are_timed_and_leave_nothing(new_experiment, mood, second, tmp_path, monkeypatch):
    # As on a machine so slow that a checkpoint is due after every step.
    monkeypatch.setattr("onetrunk.training.trainer._CHECKPOINT_SECONDS", 0)
    seen = []
    experiment = new_experiment(mood, second)
    tokens, seconds = base.time_steps("mood", experiment, lambda what, done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6]
    lengths = experiment.tokens("mood", "train").lengths
    assert 32 * lengths.min() < tokens < 32 * lengths.max()
    assert seconds > 0
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.pt"))


def test_sizes_say_what_a_step_and_what_a_token_takes(new_experiment, mood, second, tmp_path):
    base.write_sizes(tmp_path, new_experiment(mood, second), [(100.0, 3.0), (600.0, 8.0)])
    found = json.loads((tmp_path / "sizes.json").read_text())
    assert (found["cpu_seconds_per_step"], found["cpu_seconds_per_token"]) == (2.0, 0.01)
    assert found["tasks"]["mood"]["train_rows"] == 200
    assert found["tasks"]["mood"]["dev_tokens"] > 60 * 3
