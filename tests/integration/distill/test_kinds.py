"""Kinds of task beyond one label a text: searched, planned and made into bundles, with full fine-tuning beside them."""

import pytest
import torch

from onetrunk.distill.pipeline import servable_options
from onetrunk.distill.planned_heads import make_head
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import baseline_spec, run_baseline, save_baselines, search_task
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.training.evaluation import LabelledStates, evaluate
from onetrunk.training.experiment import ExperimentConfig
from onetrunk.training.models import fine_tuned_model
from onetrunk.training.runs import Distillation
from onetrunk.training.trainer import execute, run_key
from tests.fixtures.tasks import mood_rows, write_rows

SETTINGS = SearchSettings(
    epochs=2, probe_epochs=1, depths=3, fork_epochs=1, learning_rate=3e-3, student_layers=(1,), batch_size=16
)
LABELS = {
    "multilabel": lambda words: sorted({word for word in words if word in ("film", "music")}),
    "tagging": lambda words: ["B-thing" if word in ("film", "music") else "O" for word in words],
}


@pytest.fixture(params=["multilabel", "softmax", "crf"])
def task(request, tmp_path):
    kind = "multilabel" if request.param == "multilabel" else "tagging"
    for split, count, seed in (("train", 120, 1), ("dev", 40, 2)):
        rows = [row["sentence"].split() for row in mood_rows(count, seed)]
        text = (lambda words: words) if kind == "tagging" else " ".join
        write_rows(tmp_path / f"{split}.jsonl", [{"sentence": text(w), "label": LABELS[kind](w)} for w in rows])
    return Task(
        name="things",
        kind=kind,
        labels=("film", "music") if kind == "multilabel" else ("thing",),
        options={} if kind == "multilabel" else {"output": request.param},
        train="train.jsonl",
        dev="dev.jsonl",
        folder=tmp_path,
    )


class Plan:
    """As a plan file says it: which run becomes the bundle."""

    def __init__(self, trial):
        recipe = trial.spec.recipe
        values = {"run": trial.key, "tap": recipe.tap, "layers": recipe.layers, "query": recipe.query, "limb": None}
        head = type("Head", (), values)
        self.tasks = {trial.spec.task: head}


def test_a_kind_is_searched_and_its_student_becomes_a_bundle(task, second, new_experiment, tiny_trunk, tmp_path):
    experiment = new_experiment(task, second)
    # Until there are spans, all scores are zero, and nothing can be planned.
    enough = {"epochs": 24, "probe_epochs": 6, "probe_learning_rate": 1e-2, "folded_epochs": 1.0, "depths": 1}
    settings = SETTINGS.model_copy(update=enough)
    baseline = run_baseline("things", experiment, settings)
    save_baselines("things", experiment, settings)
    trials = search_task("things", experiment, settings)
    assert {trial.stage for trial in trials.trials} >= {"probe", "teacher", "student"}
    assert baseline.score > 0.5
    options = servable_options(experiment.config.runs, ["things"])
    assert options
    assert all(option.whole_layers == option.layers - (task.kind != "tagging") for option in options)
    student = next(trial for trial in trials.trials if trial.stage == "student")
    assert student.spec.distillation.other_texts > 0
    result = make_head("things", Plan(student), experiment, heads=tmp_path / "heads")
    assert result.spec.story["full_fine_tuning"]["score"] == pytest.approx(baseline.score, abs=1e-4)
    bundle = load_bundle(tmp_path / "heads" / "things")
    assert bundle.spec.scores[task.metric] == pytest.approx(student.score, abs=0.02)
    assert bundle.head(tiny_trunk).by_token == (task.kind == "tagging")


@pytest.mark.parametrize("task", ["softmax", "crf"], indirect=True)
def test_a_student_by_token_learns_no_states(task, second, new_experiment):
    experiment = new_experiment(task, second)
    trials = search_task("things", experiment, SETTINGS)
    student = next(trial for trial in trials.trials if trial.stage == "student")
    how = Distillation.model_validate({**student.spec.distillation.model_dump(), "state_weight": 1.0})
    with pytest.raises(UserError, match="task things: state_weight"):
        execute(student.spec.model_copy(update={"distillation": how}), experiment)


def test_fine_tuned_encoder_reads_words_that_it_never_saw(task, second, new_experiment, tiny_trunk, tmp_path):
    experiment = new_experiment(task, second)
    record = run_baseline("things", experiment, SETTINGS)
    model = fine_tuned_model(record, experiment)
    data = LabelledStates(experiment.tokens("things", "dev"), experiment.targets("things", "dev"))
    assert evaluate(model, data, task).scores == pytest.approx(record.scores, abs=0.02)
    embeddings = next(value for name, value in model.state_dict().items() if "word_embeddings" in name)
    first = next(value for name, value in tiny_trunk.encoder.embeddings.named_parameters() if "word_emb" in name)
    seen = experiment.tokens("things", "train").vocabulary
    unseen = [
        token for token in range(len(first)) if token not in set(seen.tolist()) and token != tiny_trunk.pad_token_id
    ]
    assert unseen
    assert torch.equal(embeddings[unseen], first[unseen]), "as they were"
    assert not torch.equal(embeddings[seen], first[seen])


@pytest.mark.parametrize("task", ["softmax"], indirect=True)
def test_a_run_with_other_options_is_another_run(task, new_experiment):
    spec = baseline_spec("things", new_experiment(task), SETTINGS)
    other = task.model_copy(update={"options": {"output": "crf"}})
    assert run_key(spec, new_experiment(task)) != run_key(spec, new_experiment(other))


def test_an_experiment_is_known_by_its_tasks(task, tmp_path):
    settings = [ExperimentConfig(tasks=(one,), runs=tmp_path) for one in (task, task.model_copy(deep=True))]
    assert len(set(settings)) == 1
    assert hash(settings[0]) != hash(ExperimentConfig(tasks=(task.model_copy(update={"dev": "other"}),), runs=tmp_path))
