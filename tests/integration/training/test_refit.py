"""Fitting a finished head anew: the result of the training, the same weights, and nothing where something differs."""

import hashlib
import json

import numpy as np
import pytest
from click.testing import CliRunner

from onetrunk.cli.refit_head import refit_head
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import read_examples
from onetrunk.tasks.kinds import get_kind
from onetrunk.training import refit, train
from onetrunk.training.evaluation import LabelledStates, raw_outputs
from onetrunk.training.experiment import Experiment, ExperimentConfig
from tests.fixtures.tasks import mood_rows, write_rows


@pytest.fixture
def places(tmp_path):
    return {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu"}


@pytest.fixture
def trained(mood, tiny_trunk, places):
    return train(mood, tiny_trunk, trunk_dtype="fp32", **places)


def digest(bundle):
    return hashlib.sha256((bundle / "head.safetensors").read_bytes()).hexdigest()


def forget(bundle):
    """Make head.json that of an older version, in which nothing was fitted."""
    values = json.loads((bundle / "head.json").read_text())
    old = {name: value for name, value in values.items() if name not in ("fitted", "reference")}
    (bundle / "head.json").write_text(json.dumps(old))


def test_refit_is_the_end_of_the_training_without_the_weights(trained, mood, tiny_trunk, places):
    before, text = digest(trained.bundle), (trained.bundle / "head.json").read_text()
    card = (trained.bundle / "README.md").read_text()
    forget(trained.bundle)
    result = refit(mood, tiny_trunk, **places)
    assert result.before.fitted == {}
    assert result.before.reference is None
    assert (trained.bundle / "head.json").read_text() == text
    assert (trained.bundle / "README.md").read_text() == card
    assert digest(trained.bundle) == before
    assert sorted(path.name for path in trained.bundle.iterdir()) == ["README.md", "head.json", "head.safetensors"]


def test_the_reference_is_recomputed_from_the_answers(trained, mood, tiny_trunk, places):
    experiment = Experiment(
        ExperimentConfig(tasks=(mood,), cache=places["cache"], device="cpu", max_length=32), tiny_trunk
    )
    dev: LabelledStates = experiment.labelled_states("mood", "dev", 1)
    spec, kind = trained.spec, get_kind("classification")
    scores = kind.output.scores(raw_outputs(load_bundle(trained.bundle).head(tiny_trunk), dev.states), spec).numpy()
    found = spec.reference
    assert found.rows == 60
    assert found.labels == pytest.approx(np.bincount(scores.argmax(-1), minlength=2) / 60, abs=1e-5)
    counts, _ = np.histogram(scores.max(-1), bins=10, range=(0, 1))
    assert found.confidence == pytest.approx(counts / 60, abs=1e-5)
    assert found.entropy == pytest.approx(-(scores * np.log(scores)).sum(-1).mean() / np.log(2), abs=1e-4)


def test_dry_run_writes_nothing(trained, mood, tiny_trunk, places):
    forget(trained.bundle)
    text = (trained.bundle / "head.json").read_text()
    result = refit(mood, tiny_trunk, dry_run=True, **places)
    assert result.spec.fitted == trained.spec.fitted
    assert (trained.bundle / "head.json").read_text() == text


def test_another_task_or_other_dev_data_are_refused(trained, mood, tiny_trunk, places, tmp_path):
    text = (trained.bundle / "head.json").read_text()
    with pytest.raises(UserError, match=r"labels \['bad', 'good'\].*\['good', 'bad'\]"):
        refit(mood.model_copy(update={"labels": ("good", "bad")}), tiny_trunk, **places)
    lines = (tmp_path / "dev.jsonl").read_text().splitlines()
    twice = [json.dumps({**json.loads(line), "other": json.loads(line)["label"]}) for line in lines]
    (tmp_path / "dev.jsonl").write_text("\n".join(twice) + "\n")
    again = train(mood, tiny_trunk, heads=tmp_path / "others", cache=tmp_path / "cache", device="cpu")
    with pytest.raises(UserError, match="trained on the usual columns, and the task file names label_field 'other'"):
        refit(mood.model_copy(update={"label_field": "other"}), tiny_trunk, **{**places, "heads": again.bundle.parent})
    (tmp_path / "dev.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="other dev data"):
        refit(mood, tiny_trunk, **places)
    assert (trained.bundle / "head.json").read_text() == text


def test_the_command_prints_what_was_fitted(trained, tiny_trunk_folder, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mood.toml").write_text(
        'labels = ["bad", "good"]\nmetrics = ["accuracy", "f1"]\ntrain = "train.jsonl"\ndev = "dev.jsonl"\n'
    )
    forget(trained.bundle)
    common = ["mood", "--trunk", str(tiny_trunk_folder), "--data", str(tmp_path), "--cache", str(places["cache"])]
    shown = CliRunner().invoke(refit_head, [*common, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "nothing was written" in shown.stderr
    assert load_bundle(trained.bundle).spec.fitted == {}
    result = CliRunner().invoke(refit_head, [*common, "--json"])
    [values] = json.loads(result.stdout)
    assert values["fitted"] == trained.spec.fitted == load_bundle(trained.bundle).spec.fitted
    assert values["reference"]["rows"] == 60
    missing = CliRunner().invoke(refit_head, [*common, "--heads", "nowhere"])
    assert missing.exit_code == 2
    assert len(missing.stderr.strip().splitlines()) == 1


@pytest.fixture
def tested(mood, tmp_path):
    """The task with test data: other rows than train and dev."""
    write_rows(tmp_path / "test.jsonl", mood_rows(50, 9))
    return mood.model_copy(update={"test": "test.jsonl"})


def test_the_finished_head_is_scored_on_test_data_with_what_was_fitted_on_dev(tested, tiny_trunk, places):
    result = train(tested, tiny_trunk, trunk_dtype="fp32", **places)
    found = result.spec.test
    assert (found.data, found.rows) == ("test.jsonl", 50)
    assert set(found.scores) == {"accuracy", "f1"}
    experiment = Experiment(
        ExperimentConfig(tasks=(tested,), cache=places["cache"], device="cpu", max_length=32), tiny_trunk
    )
    data = experiment.labelled_states("mood", "test", 1)
    raw = raw_outputs(load_bundle(result.bundle).head(tiny_trunk), data.states)
    right = float((raw.argmax(dim=1) == data.targets).float().mean())
    assert found.scores["accuracy"] == pytest.approx(right)
    card = (result.bundle / "README.md").read_text()
    assert "## Scores on the test data" in card
    assert "50 rows of test.jsonl" in card


def test_test_data_change_nothing_else(trained, tested, tiny_trunk, places):
    before = digest(trained.bundle)
    assert '"test"' not in (trained.bundle / "head.json").read_text()
    again = train(tested, tiny_trunk, trunk_dtype="fp32", **places)
    assert again.already_there
    refitted = refit(tested, tiny_trunk, **places)
    assert refitted.spec.model_copy(update={"test": None}) == trained.spec
    assert refitted.spec.test.rows == 50
    assert digest(trained.bundle) == before


def test_test_data_beside_a_share_for_dev_are_read_whole(tested, tmp_path):
    shared = tested.model_copy(update={"dev": 0.25})
    assert len(read_examples(shared, "test")) == 50
    assert len(read_examples(shared, "dev")) < 50


def test_missing_test_data_are_told_before_a_training(tested, tiny_trunk, places, tmp_path):
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"task mood: no test data 'test\.jsonl'; looked for"):
        train(tested, tiny_trunk, trunk_dtype="fp32", **places)
    assert not (places["heads"] / "mood").exists()


def test_a_task_with_other_metrics_by_now_is_refitted_by_those_of_the_head(trained, tested, tiny_trunk, places):
    changed = tested.model_copy(update={"metrics": ("macro_f1",)})
    result = refit(changed, tiny_trunk, **places)
    assert set(result.spec.test.scores) == {"accuracy", "f1"}
    assert load_bundle(trained.bundle).spec.test == result.spec.test


def test_test_scores_without_the_heads_metric_are_refused(trained, tested, tiny_trunk, places):
    refit(tested, tiny_trunk, **places)
    values = json.loads((trained.bundle / "head.json").read_text())
    values["test"]["scores"] = {}
    (trained.bundle / "head.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"test\.scores has no accuracy"):
        load_bundle(trained.bundle)


def test_what_is_wrong_with_test_data_is_said(tested, mood, tiny_trunk, places, tmp_path):
    path = tmp_path / "test.jsonl"
    dev = (tmp_path / "dev.jsonl").read_text()
    path.write_text(dev + '{"sentence": "a film"}\n')
    result = train(tested, tiny_trunk, trunk_dtype="fp32", skip_bad_rows=True, **places)
    notes = "\n".join(result.notes)
    rows = len(dev.splitlines())
    assert f"{rows:,} of {rows:,} test texts are also in dev" in notes
    assert f"left out 1 of {rows + 1:,} rows of {path}:" in notes
    # Other test data by now.
    write_rows(path, mood_rows(50, 9))
    again = train(tested, tiny_trunk, trunk_dtype="fp32", skip_bad_rows=True, **places)
    assert again.already_there
    assert "its test scores are of other data than the task file names: refit-head mood" in "\n".join(again.notes)
    # A task file without test data takes them away, and says so.
    removed = refit(mood, tiny_trunk, **places)
    assert removed.spec.test is None
    assert "names no test data, so its test scores are removed" in "\n".join(removed.notes)
