"""From a task to a bundle: what is written, what is not done twice, and what a kill at any time leaves."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file

import onetrunk.training.experiment as experiment_module
import onetrunk.training.trainer as trainer_module
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe, Task, read_examples
from onetrunk.training import train
from onetrunk.training.evaluation import evaluate
from onetrunk.training.experiment import Experiment, ExperimentConfig
from onetrunk.training.loop import DivergedError
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute, find_run


@pytest.fixture
def run(tiny_trunk, tmp_path):
    def call(task, **changes):
        places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
        return train(task, tiny_trunk, **{**places, **changes})

    return call


@pytest.fixture
def epochs(monkeypatch):
    """The states that training started from, one a training; None is from the beginning."""
    starts = []
    real = trainer_module.fit

    def fit(*args, resume, **kwargs):
        starts.append(len(resume.losses) if resume else None)
        return real(*args, resume=resume, **kwargs)

    monkeypatch.setattr(trainer_module, "fit", fit)
    return starts


def weights(result):
    return load_file(result.bundle / "head.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kill_at(step, what="epoch"):
    def progress(now, done, total):
        if what in now and done == step:
            raise KeyboardInterrupt

    return progress


def test_bundle_says_all_about_its_head(run, mood, tiny_trunk):
    result = run(mood)
    spec = load_bundle(result.bundle).spec
    assert spec == result.spec
    assert (spec.task, spec.tap, spec.layers, spec.trunk, spec.max_length) == ("mood", 1, 1, tiny_trunk.identity, 32)
    assert (spec.metric, list(spec.scores)) == ("accuracy", ["accuracy", "f1"])
    assert spec.recipe["learning_rate"] == 3e-3
    assert 1 <= spec.recipe["best_epoch"] <= spec.recipe["epochs"] == 3
    assert (spec.data["train"], spec.data["train_rows"], spec.data["dev_rows"]) == ("train.jsonl", 200, 60)
    assert spec.data["train_sha256"] == read_examples(mood, "train").sha256
    assert len(result.epoch_scores) == 3
    assert result.cache_bytes > 0
    assert "trunk_source" not in spec.recipe


def test_other_columns_and_other_labels_of_the_same_file_are_learned_anew(run, mood, tiny_trunk, tmp_path):
    """Only the file's bytes are hashed; what is read of it is another question."""
    for name in ("train", "dev"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        other = {"good": "bad", "bad": "good"}
        lines = [json.dumps({**row, "other": other[row["label"]], "copy": row["sentence"]}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    run(mood)
    assert run(mood).already_there
    for changes in ({"label_field": "other"}, {"text_field": "copy"}, {"labels": ("good", "bad")}):
        changed = mood.model_copy(update=changes)
        result = run(changed)
        assert not result.already_there, changes
        assert result.spec.scores["accuracy"] > 0.6
        assert {key: result.spec.data.get(key) for key in changed.columns} == changed.columns
        config = ExperimentConfig(
            tasks=(changed,), cache=tmp_path / "runs_cache", runs=tmp_path / "runs", max_length=32
        )
        spec = RunSpec(task="mood", role="fork", recipe=mood.recipe)
        experiment = Experiment(config, tiny_trunk)
        assert find_run(spec, experiment) is None, changes
        execute(spec, experiment)
        assert find_run(spec, experiment) is not None


def test_bundle_records_the_commit_of_a_trunk_from_a_hub(run, mood, tiny_trunk, monkeypatch):
    commit = "owner/name@0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(tiny_trunk, "source", commit)
    result = run(mood)
    assert load_bundle(result.bundle).spec.recipe["trunk_source"] == commit
    assert f"- trunk source: {commit}" in (result.bundle / "README.md").read_text()
    monkeypatch.setattr(tiny_trunk, "source", None)
    assert run(mood).already_there, "where the same trunk came from does not matter"


def test_scores_are_those_of_the_weights_as_stored(run, mood, tiny_trunk, tmp_path):
    from onetrunk.training.cache import StateCache
    from onetrunk.training.compute import ComputeConfig
    from onetrunk.training.evaluation import LabelledStates

    result = run(mood)
    examples = read_examples(mood, "dev")
    states = StateCache(tmp_path / "cache", tiny_trunk, ComputeConfig("cpu", "fp32")).states(
        examples.texts, [1], max_length=32
    )
    assert not states.trunk_ran
    dev = LabelledStates(states.states[1], torch.tensor(examples.targets))
    assert evaluate(load_bundle(result.bundle).head(tiny_trunk), dev, mood).scores == result.spec.scores


def test_pairs_with_numbers_train_as_well(run, tmp_path):
    words = ["film", "music", "red", "light", "the", "scene", "plot"]
    rows = [
        {"sentence": f"{first} {second}", "sentence2": judgement, "label": number}
        for first in words
        for second in words
        for judgement, number in (("bad", 0), ("not good", 1.5), ("good", 3), ("very good", 4))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(tap=2, layers=2, epochs=4, learning_rate=3e-3, max_length=32)
    task = Task(
        name="likeness",
        kind="regression",
        form="pair",
        range=(0, 4),
        train="rows.jsonl",
        dev="rows.jsonl",
        folder=tmp_path,
        recipe=recipe,
    )
    result = run(task)
    assert result.spec.metric == "pearson_spearman"
    assert result.score > 0.5


def test_head_learns_how_sure_its_soft_labels_are(run, mood, tmp_path):
    """Trained on the most probable labels alone, it would be too sure: an error of 0.12 before calibration."""
    other = {"good": "bad", "bad": "good"}
    for split in ("train", "dev"):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        soft = [{"sentence": row["sentence"], "counts": {row["label"]: 8, other[row["label"]]: 2}} for row in rows]
        (tmp_path / f"soft-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in soft))
    places = {"train": "soft-train.jsonl", "dev": "soft-dev.jsonl"}
    recipe = mood.recipe.model_copy(update={"tap": 0, "epochs": 8})
    result = run(mood.model_copy(update={**places, "recipe": recipe, "options": {"class_weights": "balanced"}}))
    found = load_bundle(result.bundle).spec.fitted
    assert result.score > 0.9
    assert found["soft_dev"]["best_accuracy"] == pytest.approx(0.8)
    assert found["soft_dev"]["expected_accuracy"] > 0.75
    assert found["soft_dev"]["divergence_nats"] < 0.05
    assert found["calibration_error"]["before"] < 0.08
    notes = "\n".join(result.notes)
    assert "200 of 200 rows have counts" in notes
    assert "accuracy by their probabilities is" in notes
    assert "soft dev: expected_accuracy" in (result.bundle / "README.md").read_text()


def test_finished_head_is_not_trained_again_unless_forced(run, mood, epochs):
    first = run(mood)
    stored = weights(first)
    again = run(mood)
    assert again.already_there
    assert again.spec == first.spec
    assert epochs == [None]
    forced = run(mood, force=True)
    assert not forced.already_there
    assert epochs == [None, None]
    assert same(weights(forced), stored)


def test_finished_head_needs_no_device(run, mood, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda"):
        run(mood, device="cuda")
    run(mood)
    # Choosing the trunk's data type would cost passes of the trunk.
    monkeypatch.setattr(experiment_module, "choose_compute", None)
    assert run(mood, device="cuda").already_there
    assert run(mood, device="auto", trunk_dtype="auto").already_there


@pytest.mark.parametrize("what", ["recipe", "data", "bundle"])
def test_head_of_another_recipe_or_data_or_a_broken_one_is_trained_anew(run, mood, epochs, tmp_path, what):
    first = run(mood)
    if what == "recipe":
        mood = mood.model_copy(update={"recipe": mood.recipe.model_copy(update={"seed": 1})})
    elif what == "data":
        with (tmp_path / "train.jsonl").open("a") as stream:
            stream.write('{"sentence": "one more good film", "label": "good"}\n')
    else:
        (first.bundle / "head.safetensors").write_bytes(b"broken")
    assert not run(mood).already_there
    assert epochs == [None, None]
    assert run(mood).already_there


@pytest.mark.parametrize(("step", "went_on_after"), [(5, None), (13, None), (14, 1), (39, 2)])
def test_killed_training_goes_on_and_ends_bit_for_bit_the_same(run, mood, epochs, tmp_path, step, went_on_after):
    undisturbed = run(mood, heads=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        run(mood, progress=kill_at(step))
    assert not (tmp_path / "heads" / "mood").exists()
    result = run(mood)
    assert epochs == [None, None, went_on_after]
    assert same(weights(result), weights(undisturbed))
    assert result.spec.scores == undisturbed.spec.scores
    assert result.epoch_scores == undisturbed.epoch_scores
    assert list((tmp_path / "cache" / "runs").iterdir()) == []


def test_resumed_training_reports_the_seconds_of_both_sessions(run, mood):
    def slow_first_epoch_then_killed(what, done, total):
        if "epoch 1" in what and done == 5:
            time.sleep(3)
        if "epoch 2" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mood, progress=slow_first_epoch_then_killed)
    result = run(mood)
    # The second session alone takes a fraction of a second.
    assert 3 < result.train_seconds < 60
    assert result.spec.recipe["train_seconds"] == round(result.train_seconds, 1)


def test_checkpoint_of_another_recipe_or_a_broken_one_is_not_taken(run, mood, epochs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(mood, progress=kill_at(20))
    run(mood, recipe=mood.recipe.model_copy(update={"learning_rate": 1e-3}))
    [checkpoint] = (tmp_path / "cache" / "runs").iterdir()
    checkpoint.write_bytes(b"broken")
    run(mood)
    assert epochs == [None, None, None]


def test_divergence_leaves_the_old_bundle_and_no_checkpoint(run, mood, tmp_path):
    good = run(mood)
    stored = weights(good)
    with pytest.raises(DivergedError):
        run(mood, recipe=mood.recipe.model_copy(update={"learning_rate": 1e30, "clip": 1e30}))
    assert same(weights(good), stored)
    assert list((tmp_path / "cache" / "runs").iterdir()) == []


def test_recipe_without_a_tap_stands_in_the_middle(run, mood, tiny_trunk):
    result = run(mood, recipe=Recipe(epochs=1, max_length=32))
    assert result.spec.tap == tiny_trunk.depth // 2 == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tap": 7}, "tap 7 is not on this trunk of 4 layers: give 0 to 3"),
        ({"tap": 4}, "tap 4 has no layer above it on this trunk: give 0 to 3"),
        ({"tap": 2, "layers": 3}, "a head on tap 2 of this trunk has 2 layers at most, not 3"),
        ({"max_length": 100}, "max_length 100: this trunk reads 3 to 64 tokens"),
    ],
)
def test_recipe_that_the_trunk_cannot_carry_out_is_refused(run, mood, changes, message):
    with pytest.raises(UserError, match=message):
        run(mood, recipe=mood.recipe.model_copy(update=changes))


def test_notes_say_what_to_know_about_the_data(run, mood, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write('{"sentence": "", "label": "good"}\n')
    (tmp_path / "dev.jsonl").write_text('{"sentence": "a good film", "label": "good"}\n')
    result = run(mood, skip_bad_rows=True, recipe=mood.recipe.model_copy(update={"max_length": 5}))
    left_out, absent, cut, advice = result.notes
    assert left_out.startswith("left out 1 of 201 rows of ")
    assert absent == "no row of the dev data has the label 'bad'"
    assert cut.endswith("train texts were cut at 5 tokens")
    assert 'long_texts = "windows" in the task file' in advice
    assert result.spec.data["train_rows_left_out"] == 1


def test_metric_without_a_value_is_noted(run, mood, tmp_path):
    (tmp_path / "dev.jsonl").write_text('{"sentence": "a good film", "label": "good"}\n')
    result = run(mood.model_copy(update={"metrics": ("matthews",)}))
    assert result.score == 0
    assert result.notes[-1] == "matthews is undefined and counts as 0: a correlation needs two rows or more"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_as_the_cpu_does(run, mood, tiny_trunk, tmp_path):
    cpu = run(mood)
    cuda = run(mood, device="cuda", heads=tmp_path / "cuda")
    assert abs(cuda.score - cpu.score) < 0.1
    assert cuda.spec.recipe["device"] == "cuda"
    assert next(tiny_trunk.parameters()).device.type == "cpu"
