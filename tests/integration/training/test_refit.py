"""Fitting a finished head anew: the result of the training, the same weights, and nothing where something differs."""

import hashlib
import json

import numpy as np
import pytest
from click.testing import CliRunner

from onetrunk.cli.refit_head import refit_head
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds import get_kind
from onetrunk.training import refit, train
from onetrunk.training.evaluation import LabelledStates, raw_outputs
from onetrunk.training.experiment import Experiment, ExperimentConfig


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
