"""Lessons of a teacher from outside: which texts are learned, from what, and how heads follow it."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe, read_examples
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.soft_targets import raw_of_probabilities
from onetrunk.training.bundles import Lesson, train
from onetrunk.training.distillation import fit_output, training_data
from onetrunk.training.evaluation import raw_outputs
from onetrunk.training.lessons import make_lessons, varied
from onetrunk.training.loop import set_dropout
from onetrunk.training.models import new_model
from onetrunk.training.objective import DistilObjective, LabelObjective, LayersObjective
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import run_key
from tests.fixtures.tasks import mood_rows


class Oracle:
    """A teacher that finds a text good or bad by its word, and says nothing about texts with a word that it fears."""

    identity = "oracle"
    texts = ()

    def __init__(self, fears="nothing"):
        self.fears, self.facts = fears, {"name": "oracle", "sha256": "0" * 64}

    def raw(self, texts, config, offsets=None, progress=None):
        rows = [[np.nan] * 2 if self.fears in text else [0.1, 0.9] if "good" in text else [0.8, 0.2] for text in texts]
        return raw_of_probabilities(np.array(rows).reshape(-1, 2), independent=False)


TEXTS = [row["sentence"] for row in mood_rows(300, 7)]


def lessons(mood, tiny_trunk, teacher=None, texts=TEXTS, **options):
    return make_lessons(mood, teacher or Oracle(), texts, tiny_trunk, max_length=32, **options)


def test_texts_are_split_once_and_for_all(mood, tiny_trunk):
    few, many = lessons(mood, tiny_trunk, texts=TEXTS[:150]), lessons(mood, tiny_trunk)
    assert set(few.dev.texts) <= set(many.dev.texts)
    assert not set(many.train.texts) & set(many.dev.texts)
    assert 10 < len(many.dev) < 60
    assert many.labelled == 0
    # Labels are what the teacher finds likeliest.
    assert [
        text for text, label in zip(many.dev.texts, many.dev.targets, strict=True) if ("good" in text) != label
    ] == []


def test_changed_copies_are_learned_from_and_never_compared(mood, tiny_trunk):
    plain, more = lessons(mood, tiny_trunk), lessons(mood, tiny_trunk, variants=2)
    assert more.dev == plain.dev
    assert more.train.texts[: len(plain.train)] == plain.train.texts
    copies = more.train.texts[len(plain.train) :]
    # Some copies have lost the word that the teacher goes by and got another; it is asked about each.
    assert len(plain.train) < len(copies) < 2 * len(plain.train), "those that came out as another text are left out"
    assert not set(copies) & {*plain.train.texts, *plain.dev.texts}
    assert len(more.raw) == len(more.train)
    words = {word for text in TEXTS for word in text.split()}
    assert {word for text in copies for word in text.split()} <= words


def test_copies_of_labelled_texts_have_what_the_teacher_says(mood, tiny_trunk):
    own, dev = read_examples(mood, "train"), read_examples(mood, "dev")
    found = lessons(mood, tiny_trunk, texts=[], train=own, dev=dev, variants=2)
    assert found.labelled == 200
    assert 300 < len(found.train) < 600
    assert not set(found.train.texts[200:]) & {*own.texts, *dev.texts}
    assert found.train.texts[:200] == own.texts
    assert found.train.targets[:200] == own.targets
    copies = found.train.texts[200:]
    assert list(found.train.targets[200:]) == [int("good" in text) for text in copies]
    assert found.data(mood, "train") == f"{mood.train}, 2 changed copies of each text"
    assert found.data(mood, "dev") == mood.dev
    both = lessons(mood, tiny_trunk, train=own, dev=dev, variants=1, source="more.txt")
    assert both.data(mood, "train") == f"{mood.train}, more.txt, 1 changed copy of each text"
    alone = lessons(mood, tiny_trunk, variants=1, source="more.txt")
    assert alone.data(mood, "train") == "more.txt, 1 changed copy of each text"
    assert alone.data(mood, "dev") == "more.txt"


def test_both_texts_of_a_pair_are_changed_and_none_is_left_empty():
    pairs = [("one", "a b c d e f g h"), ("two", "i j k l m n o p")] * 20
    copies = varied(pairs, 3)
    assert copies == varied(pairs, 3)
    assert all(isinstance(copy, tuple) and all(copy) for copy in copies)
    assert any(copy[1] != pair[1] for copy, pair in zip(copies, pairs * 3, strict=True))


def test_labelled_rows_come_first_and_are_no_texts_of_dev(mood, tiny_trunk):
    own, dev = read_examples(mood, "train"), read_examples(mood, "dev")
    found = lessons(mood, tiny_trunk, texts=[*TEXTS, *dev.texts], train=own, dev=dev)
    assert found.labelled == 200
    assert found.train.texts[:200] == own.texts
    assert not set(found.train.texts[200:]) & set(dev.texts)
    assert found.dev is dev
    assert found.dev_raw is None


def test_texts_that_the_teacher_knows_nothing_about_are_left_out(mood, tiny_trunk):
    found = lessons(mood, tiny_trunk, Oracle(fears="music"))
    assert not any("music" in text for text in (*found.train.texts, *found.dev.texts))
    whole = lessons(mood, tiny_trunk)
    for split in ("train", "dev"):
        rows, left_out = getattr(found, split), len(getattr(whole, split)) - len(getattr(found, split))
        assert rows.left_out == left_out > 0
        note = f"left out {left_out} {split} texts without labels, about which the teacher says nothing"
        assert rows.notes == (f"texts: {note}",)


def test_labelled_texts_that_the_teacher_knows_nothing_about_are_kept_and_told(mood, tiny_trunk):
    own = read_examples(mood, "train")
    beside = lessons(mood, tiny_trunk, Oracle(fears="music"), train=own)
    assert beside.train.texts[:200] == own.texts
    known = sum("music" not in text for text in own.texts)
    assert int(np.isnan(beside.raw[:200]).any(axis=1).sum()) == 200 - known
    assert f"the teacher says something about {known} of 200 labelled train texts" in beside.train.notes[-1]
    with pytest.raises(UserError, match="says nothing about any of the train texts"):
        lessons(mood, tiny_trunk, Oracle(fears=""), texts=[], train=own, dev=read_examples(mood, "dev"))


def test_no_texts_for_a_split_are_told(mood, tiny_trunk):
    with pytest.raises(UserError, match="it leaves no texts for dev"):
        lessons(mood, tiny_trunk, texts=TEXTS[:1], dev_share=1e-9)
    with pytest.raises(UserError, match="says nothing about any of the train texts"):
        lessons(mood, tiny_trunk, Oracle(fears=""))


def test_another_answer_of_the_teacher_is_other_data(mood, tiny_trunk):
    class Other(Oracle):
        identity = "other"

    assert lessons(mood, tiny_trunk).train.sha256 != lessons(mood, tiny_trunk, Other()).train.sha256


def test_rows_without_soft_targets_count_by_their_labels_alone():
    kind, raw = get_kind("classification"), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    labels = LabelObjective(kind, torch.tensor([1, 0]))
    teacher = torch.tensor([[0.5, 0.5], [float("nan"), float("nan")]])
    found = DistilObjective(labels, teacher, 1.0)(raw, torch.tensor([0, 1]))
    expected = 0.5 * kind.training.soft_loss(raw[:1], teacher[:1], 1.0) + labels(raw, torch.tensor([0, 1]))
    assert torch.isclose(found, expected)
    only = DistilObjective(labels, teacher, 1.0)(raw[1:], torch.tensor([1]))
    assert torch.isclose(only, labels(raw[1:], torch.tensor([1])))


def test_an_output_layer_is_fitted_before_training(mood, tiny_trunk, tmp_path, new_experiment):
    task = mood.model_copy(update={"train": "", "dev": 0.1})
    experiment = new_experiment(task)
    experiment.teach("mood", lessons(task, tiny_trunk))
    spec = RunSpec(task="mood", role="fork", recipe=Recipe(tap=2, layers=2, max_length=32))
    head = new_model(spec, experiment)
    states = experiment.states("mood", "train", [2]).states[2]
    wanted = experiment.lessons("mood").raw

    def error():
        return float(((raw_outputs(head, states).numpy() - wanted) ** 2).mean())

    before, layers = error(), [one.clone() for one in head.layers.parameters()]
    fit_output(head, experiment.lessons("mood"), states)
    assert head.training
    constant = float(((wanted - wanted.mean(axis=0)) ** 2).mean())
    assert error() < 0.8 * constant < before
    assert all(torch.equal(one, other) for one, other in zip(layers, head.layers.parameters(), strict=True))


def test_a_head_learns_what_the_teacher_says(mood, tiny_trunk, tmp_path):
    task = mood.model_copy(
        update={"train": "", "dev": 0.1, "recipe": Recipe(tap=1, epochs=15, learning_rate=5e-3, max_length=32)}
    )
    places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache"}

    def learn():
        return train(task, tiny_trunk, **places, device="cpu", lesson=Lesson(Oracle(), TEXTS))

    result = learn()
    assert result.score > 0.9
    # Its probabilities are the teacher's, not those of the labels that follow from them: 0.8 and 0.9, not 1.
    assert result.spec.reference.confidence[-1] < 0.5
    assert result.spec.data["teacher_sha256"] == "0" * 64
    assert "The labels of the dev data are the teacher's answers" in (result.bundle / "README.md").read_text()
    assert learn().already_there


def test_dropout_is_set_everywhere_also_where_an_attention_keeps_it_as_a_number():
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Identity())
    model[1].attention_dropout = 0.3
    set_dropout(model, 0.0)
    assert (model[0].p, model[1].attention_dropout) == (0.0, 0.0)


def test_heads_that_start_from_the_teachers_layers_also_learn_its_states(
    mood, tiny_trunk, tiny_trunk_folder, tmp_path, new_experiment
):
    task = mood.model_copy(update={"train": "", "dev": 0.1})
    experiment = new_experiment(task)

    def loss(layers, encoder):
        experiment.teach("mood", lessons(task, tiny_trunk, encoder=encoder))
        spec = RunSpec(task="mood", role="fork", recipe=Recipe(tap=1, layers=layers, max_length=32))
        model = new_model(spec, experiment)
        set_dropout(model, 0.0)
        data, objective = training_data(spec, experiment, model)
        rows = np.arange(8)
        return objective, objective(model(*data.states.batch(rows)), torch.from_numpy(rows)).item()

    objective, alone = loss(2, None)
    assert isinstance(objective, DistilObjective)
    spec = RunSpec(task="mood", role="fork", recipe=Recipe(tap=1, layers=2, max_length=32))
    key = run_key(spec, experiment)
    # A teacher that is the trunk itself has the states that a fresh head computes.
    objective, same = loss(2, tiny_trunk)
    assert isinstance(objective, LayersObjective)
    assert same == pytest.approx(alone, abs=1e-3)
    # It is another training, also of a head whose records are older.
    assert run_key(spec, experiment) != key
    tuned = copy.deepcopy(tiny_trunk)
    tuned.identity = "bert-4x32@fine-tuned"
    for layer in tuned.layers[:1]:
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    assert loss(2, tuned)[1] > same + 0.1
    # A single layer is folded: it has no states that a teacher's layer has, too.
    assert isinstance(loss(1, tiny_trunk)[0], DistilObjective)
    # Without special tokens, a teacher's tokens are not those of the trunk.
    other = shutil.copytree(tiny_trunk_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert isinstance(loss(2, load_trunk(other))[0], DistilObjective)


def test_test_texts_are_not_learned(mood, tiny_trunk, tmp_path):
    rows = mood_rows(50, 7)
    place = tmp_path / "test.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = read_examples(mood.model_copy(update={"test": str(place)}), "test")
    found = lessons(mood, tiny_trunk, test=test)
    assert not {*found.train.texts, *found.dev.texts} & {row["sentence"] for row in rows}
    without = lessons(mood, tiny_trunk)
    assert {row["sentence"] for row in rows} & {*without.train.texts, *without.dev.texts}
