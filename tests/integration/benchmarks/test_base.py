"""Work on a task of the base-size study: each step leaves its records at once, and is not done again."""

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


def test_speed_is_measured_in_real_steps_and_leaves_nothing(new_experiment, mood, second, tmp_path):
    seen = []
    experiment = new_experiment(mood, second)
    speed = base.measure_speed("mood", experiment, lambda what, done, total: seen.append(done))
    assert speed > 0
    assert len(seen) == min(13, -(-200 // 32) * 3)
    assert not (tmp_path / "runs").exists()
