"""The files that say which runs belong to a study."""

import pytest

from onetrunk.distill.pipeline import servable_options
from onetrunk.distill.trials import Trial, Trials, load_trials, save_trials
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe
from onetrunk.training.runs import RunSpec


def test_they_are_read_as_they_were_written(tmp_path):
    studies = [Trials(study="search", task=task, metric="accuracy", notes=("a note",)) for task in ("one", "two")]
    for study in studies:
        save_trials(tmp_path / "runs", study)
    save_trials(tmp_path / "runs", Trials(study="grid", task="one", metric="accuracy"))
    assert load_trials(tmp_path / "runs", ["search"]) == studies
    assert [study.study for study in load_trials(tmp_path / "runs", ["search", "grid"])] == ["search", "search", "grid"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "search"}', '{"study": "serch", "task": "one"}', "\x00"])
def test_broken_file_is_one_line(tmp_path, content):
    path = tmp_path / "one.search.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"not a study's file: ") as e:
        load_trials(tmp_path, ["search"])
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_task_that_was_not_searched_is_named(tmp_path):
    with pytest.raises(UserError, match="task one has not been searched yet; search again with all tasks"):
        servable_options(tmp_path, ["one"])
    save_trials(tmp_path, Trials(study="search", task="one", metric="accuracy"))
    with pytest.raises(UserError, match="task one has not been fine-tuned as a whole yet"):
        servable_options(tmp_path, ["one"])


def test_baseline_that_learned_nothing_is_refused(tmp_path):
    spec = RunSpec(task="one", role="full", recipe=Recipe(tap=0))
    trial = Trial(stage="baseline", key="0", spec=spec, score=0.0, epochs=3, stopped=False, cpu_seconds=1)
    save_trials(tmp_path, Trials(study="search", task="one", metric="matthews"))
    save_trials(tmp_path, Trials(study="baseline", task="one", metric="matthews", trials=(trial,)))
    with pytest.raises(UserError, match=r"task one: full fine-tuning scores 0.000 by matthews .*; give more dev"):
        servable_options(tmp_path, ["one"])
