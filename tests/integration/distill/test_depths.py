"""The search of one task: what it tries, what it writes down, and that a kill costs nothing."""

import json
import shutil
from types import SimpleNamespace

import pytest

import onetrunk.training.trainer as trainer_module
from benchmarks.study.trainings import run_grid
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, search_task
from onetrunk.distill.trials import load_trials, read_trials, save_trials
from onetrunk.training import loop
from onetrunk.training.evaluation import Evaluation
from tests.fixtures.tasks import mood_rows, write_rows

SETTINGS = SearchSettings(
    epochs=2,
    probe_epochs=1,
    fork_epochs=2,
    depths=3,
    learning_rate=1e-3,
    student_layers=(1, 2),
    batch_size=16,
    other_texts=8,
)


@pytest.fixture
def new(new_experiment, mood, second, tmp_path):
    """An experiment of mood and second, which has read nothing yet. It has few rows: what is learned matters little."""
    for name, count, seed in (("train", 40, 1), ("dev", 20, 2)):
        write_rows(tmp_path / f"{name}.jsonl", mood_rows(count, seed))
    return lambda: new_experiment(mood, second)


@pytest.fixture
def scored(monkeypatch):
    """Sets what every model scores, by how many layers it has."""

    def score(by_layers):
        def evaluate(model, data, task):
            model.eval()
            return Evaluation(dict.fromkeys(task.metrics, by_layers[len(model.layers)]), ())

        monkeypatch.setattr(loop, "evaluate", evaluate)

    return score


def kill_before(number, monkeypatch):
    """Ends the process, as Ctrl-C would, where the training of this number, from 0, is to begin."""
    real, begun = trainer_module.fit, []

    def fit(*args, **kwargs):
        if len(begun) == number:
            raise KeyboardInterrupt
        begun.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "fit", fit)
    return lambda: monkeypatch.setattr(trainer_module, "fit", real)


def outcome(trials):
    """What a search came to, without what it cost."""
    return [trial.model_dump(exclude={"cpu_seconds"}) for trial in trials.trials], trials.notes


def shapes(trials, stage):
    return [
        (trial.spec.recipe.tap, trial.spec.recipe.layers, trial.epochs, trial.stopped)
        for trial in trials.trials
        if trial.stage == stage
    ]


def test_search_ends_with_probes_teachers_and_students(new, tmp_path, fits):
    trials = search_task("mood", new(), SETTINGS)
    assert trials == read_trials(tmp_path / "runs" / "mood.search.json")
    assert shapes(trials, "probe") == [(tap, 1, 1, False) for tap in range(4)]
    teachers = shapes(trials, "teacher")
    assert len(teachers) == 3
    assert [tap for tap, *_ in teachers] == sorted([tap for tap, *_ in teachers], reverse=True)
    assert all(tap + layers == 4 for tap, layers, *_ in teachers)
    students = [trial for trial in trials.trials if trial.stage == "student"]
    assert students
    of_teacher = {trial.key: trial for trial in trials.trials if trial.stage == "teacher"}
    for student in students:
        teacher = of_teacher[student.spec.distillation.teacher]
        assert not teacher.stopped
        assert student.spec.recipe.tap == teacher.spec.recipe.tap
        assert student.spec.recipe.layers < teacher.spec.recipe.layers
        assert student.spec.distillation.other_texts == 0.2  # 8 for 40
    assert len(fits) == len(trials.trials)
    assert all(new().store.by_key(trial.key).score == trial.score for trial in trials.trials)
    assert trials.cpu_seconds > 0
    assert trials.trunk_cpu_seconds > 0


@pytest.mark.parametrize("killed_before", [0, 5, 7, 9])
def test_killed_search_goes_on_and_does_nothing_twice(new, fits, tmp_path, monkeypatch, scored, killed_before):
    # Four probes, two forks, teachers of 1 to 3 layers, and students of 1 and 2 layers.
    scored({1: 0.5, 2: 0.7, 3: 0.9, 4: 0.9})
    revive = kill_before(killed_before, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        search_task("mood", new(), SETTINGS)
    revive()
    assert len(fits) == killed_before
    resumed = search_task("mood", new(), SETTINGS)
    assert len(fits) == len(resumed.trials) == 11
    assert all(fit.start == 0 for fit in fits)

    again = search_task("mood", new(), SETTINGS)
    assert again == resumed
    assert len(fits) == 11

    # Undisturbed, from nothing, it comes to the same.
    for path in (tmp_path / "runs").iterdir():
        path.unlink()
    (tmp_path / "cache" / "runs").rename(tmp_path / "old-runs")
    assert outcome(search_task("mood", new(), SETTINGS)) == outcome(resumed)


def test_search_that_goes_on_shows_what_it_had_come_to_before(new, tmp_path, monkeypatch):
    whole = search_task("mood", new(), SETTINGS)
    (tmp_path / "runs" / f"mood-fork-{whole.trials[1].key}.json").unlink()
    kill_before(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        search_task("mood", new(), SETTINGS)
    [shown] = load_trials(tmp_path / "runs", ["search"])
    assert {trial.key for trial in shown.trials} == {trial.key for trial in whole.trials}
    assert whole.complete
    assert not shown.complete


def test_records_are_enough_where_the_cache_is_gone(new, scored, fits, tmp_path):
    scored({1: 0.5, 2: 0.9, 3: 0.6})
    whole = search_task("mood", new(), SETTINGS)
    begun = len(fits)
    shutil.rmtree(tmp_path / "cache")
    assert search_task("mood", new(), SETTINGS) == whole
    assert len(fits) == begun
    assert not (tmp_path / "cache" / "states").exists()
    # What is missing is done, and what it needs: the student's teacher.
    [student] = [trial for trial in whole.trials if trial.stage == "student"]
    (tmp_path / "runs" / f"mood-student-{student.key}.json").unlink()
    assert outcome(search_task("mood", new(), SETTINGS)) == outcome(whole)
    assert len(fits) == begun + 2


def test_a_teacher_that_is_behind_is_trained_to_its_end(new, scored):
    # Teachers come on taps 3, 2 and 1, with 1, 2 and 3 layers.
    scored({1: 0.5, 2: 0.9, 3: 0.6})
    trials = search_task("mood", new(), SETTINGS)
    assert shapes(trials, "teacher") == [(3, 1, 2, False), (2, 2, 2, False), (1, 3, 2, False)]
    # Students of the best teacher alone: the one of one layer is not near it.
    assert shapes(trials, "student") == [(2, 1, 6, False)]


def test_a_teacher_that_an_earlier_version_stopped_goes_on(new, scored, fits, tmp_path):
    scored({1: 0.5, 2: 0.9, 3: 0.6})

    def kill(what, done, total):
        if "epoch 2" in what and len(fits) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_task("mood", new(), SETTINGS, kill)
    assert list((tmp_path / "cache" / "runs").glob("*.pt"))
    whole = search_task("mood", new(), SETTINGS)
    assert [fit.start for fit in fits[7:9]] == [0, 1]
    assert shapes(whole, "teacher") == [(3, 1, 2, False), (2, 2, 2, False), (1, 3, 2, False)]
    # As an earlier version recorded it, when it stopped a teacher that was behind.
    [key] = [trial.key for trial in whole.trials if (trial.stage, trial.spec.recipe.tap) == ("teacher", 1)]
    record = tmp_path / "runs" / f"mood-teacher-{key}.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "state": "stopped", "losses": values["losses"][:1]}))
    assert outcome(search_task("mood", new(), SETTINGS)) == outcome(whole)
    assert json.loads(record.read_text())["state"] == "finished"


def test_grid_does_not_change_the_search(new, scored, fits):
    scored({1: 0.5, 2: 0.9, 3: 0.6, 4: 0.8})
    search = search_task("mood", new(), SETTINGS)
    begun = len(fits)
    grid = run_grid("mood", new(), SETTINGS)
    # Tap 0 alone is new.
    assert [fit.start for fit in fits[begun:]] == [0]
    assert shapes(grid, "teacher") == [(tap, 4 - tap, 2, False) for tap in (3, 2, 1, 0)]
    assert search_task("mood", new(), SETTINGS) == search
    assert len(fits) == begun + 1


@pytest.fixture
def full_score(monkeypatch):
    """Sets what full fine-tuning is recorded to score."""

    def score(value):
        record = SimpleNamespace(score=value)
        monkeypatch.setattr("onetrunk.distill.task_search.find_run", lambda spec, experiment: record)

    return score


def test_no_lower_tap_once_a_teacher_is_as_good_as_full_fine_tuning(new, scored, full_score):
    scored({1: 0.85, 2: 0.9, 3: 0.95})
    full_score(0.9)
    trials = search_task("mood", new(), SETTINGS)
    assert shapes(trials, "teacher") == [(3, 1, 2, False), (2, 2, 2, False)]
    [note] = trials.notes
    assert "tap 2" in note
    assert "100.0%" in note


def test_where_one_layer_falls_far_short_a_long_head_stands_on_a_low_tap(new, scored, full_score):
    scored({1: 0.5, 2: 0.8, 3: 0.85})
    full_score(0.9)
    trials = search_task("mood", new(), SETTINGS)
    # Two forks of one layer, then the long head; a teacher on its tap, and a student of its length.
    assert shapes(trials, "fork")[2:] == [(1, 2, 2, False)]
    assert shapes(trials, "teacher") == [(1, 3, 2, False)]
    assert shapes(trials, "student") == [(1, 2, 2, False)]


def test_search_ends_with_a_long_head_that_is_good_enough(new, scored, full_score):
    scored({1: 0.5, 2: 0.9, 3: 0.95})
    full_score(0.9)
    trials = search_task("mood", new(), SETTINGS)
    assert shapes(trials, "fork")[2:] == [(1, 2, 2, False)]
    assert shapes(trials, "teacher") == shapes(trials, "student") == []


@pytest.mark.parametrize("full", [0.9, None])
def test_no_long_head_where_it_gains_nothing_or_its_need_is_unknown(new, scored, full_score, full):
    # It scores less than heads of one layer; or there is no full fine-tuning to fall short of.
    scored({1: 0.5, 2: 0.45, 3: 0.48})
    if full is not None:
        full_score(full)
    trials = search_task("mood", new(), SETTINGS)
    assert len(shapes(trials, "fork")) == (3 if full else 2)
    assert [tap for tap, *_ in shapes(trials, "teacher")] == [3, 2, 1]


def test_students_grow_until_one_is_good_enough(new, scored):
    settings = SETTINGS.model_copy(update={"depths": 4, "student_layers": (1, 2, 3)})
    scored({1: 0.5, 2: 0.9, 3: 0.9, 4: 0.91})
    trials = search_task("mood", new(), settings.model_copy(update={"enough": 0.95}))
    # Teachers of 2, 3 and 4 layers are near the best, in this order; the first has no student of two layers, of the
    # second two layers are enough, and the third needs none then.
    assert shapes(trials, "student") == [(2, 1, 6, False), (1, 1, 6, False), (1, 2, 2, False)]


def test_full_fine_tuning_is_not_among_the_searchs_costs(new):
    record = run_baseline("mood", new(), SETTINGS)
    assert record.key not in {trial.key for trial in search_task("mood", new(), SETTINGS).trials}


def test_what_should_be_known_of_the_data_is_noted(new, tmp_path):
    train = mood_rows(40, 1)
    write_rows(tmp_path / "train.jsonl", [row for row in train if row["label"] == "good"])
    write_rows(tmp_path / "dev.jsonl", [next(row for row in train if row["label"] == "good")])
    experiment = new()
    experiment.config.tasks[0].__dict__["metrics"] = ("matthews",)
    notes = search_task("mood", experiment, SETTINGS).notes
    assert notes[:4] == (
        "no row of the train data has the label 'bad'",
        "no row of the dev data has the label 'bad'",
        "1 of 1 dev texts is also in train",
        "matthews is undefined and counts as 0: a correlation needs two rows or more",
    )


def test_notes_name_files_as_the_task_does(new, tmp_path):
    """Records are read on machines where the data lie elsewhere."""
    twice = [{"sentence": "so so", "label": label} for label in ("good", "bad")]
    write_rows(tmp_path / "train.jsonl", mood_rows(40, 1) + twice)
    notes = search_task("mood", new(), SETTINGS).notes
    assert "train.jsonl: 1 text occurs with different labels: lines 41 and 42" in notes
    assert not any(str(tmp_path) in note for note in notes)


def test_broken_file_of_an_earlier_search_is_written_anew(new, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mood.search.json").write_text("{")
    trials = search_task("mood", new(), SETTINGS)
    assert read_trials(tmp_path / "runs" / "mood.search.json") == trials
    save_trials(tmp_path / "runs", trials)
