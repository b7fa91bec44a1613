"""A classifier as a teacher says what `transformers` says, reads each text once, and goes on after a kill."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from onetrunk.adopt import teacher as module
from onetrunk.adopt.answers import in_batches
from onetrunk.adopt.classifier import open_classifier
from onetrunk.adopt.teacher import ModelTeacher
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.examples import token_offsets
from tests.fixtures.classifiers import TAGS, tuned_classifier

TEXTS = ["a good film", "the music was very bad and the plot was not great", "no", "red light , blue light"]
PAIRS = [("a film", "the film was good"), ("who is it", "it is the light"), ("no", "yes , yes , yes")]


def task(**values):
    return Task.model_validate({"name": "t", "train": "", "dev": 0.1, **values})


def alone(folder, text, auto=AutoModelForSequenceClassification):
    """What transformers says about one text, without padding. *Shape:* (outputs,) or (tokens, outputs)."""
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    parts = (text,) if isinstance(text, str) else text
    inputs = tokenizer(*parts, return_tensors="pt")
    if model.config.model_type != "bert":
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs).logits[0].numpy()


@pytest.mark.parametrize(
    ("family", "texts"), [("Bert", TEXTS), ("Bert", PAIRS), ("DistilBert", TEXTS), ("Roberta", TEXTS)]
)
def test_logits_are_those_of_the_model(new_classifier, tmp_path, family, texts):
    folder = new_classifier(family, "SequenceClassification", ("no", "yes", "maybe"))
    teacher = ModelTeacher(open_classifier(str(folder)), cache=tmp_path)
    form = "single" if texts is TEXTS else "pair"
    # The task's labels have another order.
    found = teacher.raw(texts, task(labels=("maybe", "no", "yes"), form=form))
    expected = np.stack([alone(folder, text)[[2, 0, 1]] for text in texts])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len({tuple(row.round(4)) for row in found}) == len(texts)


def test_a_number_is_on_the_scale_of_the_task(new_classifier, tmp_path):
    folder = new_classifier("Bert", "SequenceClassification", ("score",), problem_type="regression")
    teacher = ModelTeacher(open_classifier(str(folder)), cache=tmp_path)
    found = teacher.raw(TEXTS, task(kind="regression", range=(-10, 10)))
    np.testing.assert_allclose(found * 20 - 10, np.stack([alone(folder, text) for text in TEXTS]), atol=1e-4)


def test_thresholds_become_one_half(tiny_trunk_folder, tmp_path):
    folder = tuned_classifier(
        tmp_path / "m", tiny_trunk_folder, problem_type="multi_label_classification", thresholds=[0.2, 0.7]
    )
    teacher = ModelTeacher(open_classifier(str(folder)), cache=tmp_path)
    found = teacher.raw(TEXTS, task(kind="multilabel", labels=("bad", "good")))
    probabilities = expit(np.stack([alone(folder, text) for text in TEXTS]))
    assert ((found >= 0) == (probabilities >= [0.2, 0.7])).all()


def test_tags_are_those_of_a_words_first_token(new_classifier, tiny_trunk, tmp_path):
    folder = new_classifier("Bert", "TokenClassification", TAGS)
    teacher = ModelTeacher(open_classifier(str(folder)), cache=tmp_path)
    tagging = task(kind="tagging", labels=("person", "place"), options={"output": "softmax"})
    # The same tokenizer, so that tokens are those of the model; "xyz" is one word of three pieces.
    text = "xyz film"
    offsets = token_offsets(tiny_trunk.tokenizer(), [text], 32)
    found = softmax(teacher.raw([text], tagging, offsets)[0].astype(float), axis=-1)
    logits = alone(folder, text, AutoModelForTokenClassification)
    first = softmax(logits[1].astype(float))
    # At the beginning, what is inside a span begins one.
    begins = np.array([first[0], first[1] + first[2], 0, first[3] + first[4], 0])
    np.testing.assert_allclose(found[1], begins, atol=1e-5)
    # The further pieces of the word go on with it.
    np.testing.assert_allclose(found[2], begins[[0, 2, 1, 4, 3]], atol=1e-5)
    np.testing.assert_allclose(found[0], [1, 0, 0, 0, 0], atol=1e-5)


def test_each_text_is_read_once(mood_classifier, tmp_path, monkeypatch):
    opened = open_classifier(str(mood_classifier))
    first = ModelTeacher(opened, cache=tmp_path).outputs(TEXTS)
    loads = []
    real = module.load_model
    monkeypatch.setattr(module, "load_model", lambda one: loads.append(one) or real(one))
    again = ModelTeacher(opened, cache=tmp_path).outputs([*reversed(TEXTS), TEXTS[0]])
    assert not loads
    np.testing.assert_array_equal(again[-1], first[0])
    ModelTeacher(opened, cache=tmp_path).outputs([*TEXTS, "a new one"])
    assert len(loads) == 1


def test_goes_on_where_it_was_killed(mood_classifier, tmp_path):
    opened = open_classifier(str(mood_classifier))
    expected = ModelTeacher(opened, cache=tmp_path / "whole").outputs(TEXTS)
    ModelTeacher(opened, cache=tmp_path / "killed").outputs(TEXTS)
    (part,) = (tmp_path / "killed").rglob("part_00.f32")
    part.write_bytes(part.read_bytes()[:-3])  # the last record is cut short
    read = []
    found = ModelTeacher(opened, cache=tmp_path / "killed").outputs(
        TEXTS, lambda what, done, total: read.append((done, total))
    )
    assert read[-1] == (1, 1)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-6)


def test_weights_without_the_classifier_are_refused(tiny_trunk_folder, mood_classifier, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in mood_classifier.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes((tiny_trunk_folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"the weights lack .*: was the model saved without its classifier\?"):
        ModelTeacher(open_classifier(str(folder)), cache=tmp_path).outputs(TEXTS)


@pytest.mark.hostile
def test_a_configuration_of_a_giant_is_refused_before_memory_is_taken(mood_classifier, tmp_path):
    import json

    folder = tmp_path / "giant"
    folder.mkdir()
    for file in mood_classifier.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 2**31, "hidden_size": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the weights do not fit config\.json: it describes 2,"):
        ModelTeacher(open_classifier(str(folder)), cache=tmp_path).outputs(TEXTS)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.hostile
def test_broken_files_are_refused(mood_classifier, tmp_path, name):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in mood_classifier.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
    with pytest.raises(UserError, match=r"transformers cannot load it|do not fit config.json"):
        ModelTeacher(open_classifier(str(folder)), cache=tmp_path).outputs(TEXTS)


@pytest.mark.hostile
def test_a_tokenizer_of_another_model_is_refused(new_classifier, tmp_path):
    folder = new_classifier("Bert", "SequenceClassification", ("no", "yes"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"more{one}" for one in range(10)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="they are of two models"):
        ModelTeacher(open_classifier(str(folder)), cache=tmp_path).outputs(TEXTS)


def test_other_labels_are_refused(mood_classifier, tmp_path):
    with pytest.raises(ValueError, match="the teacher lacks fine and has good"):
        ModelTeacher(open_classifier(str(mood_classifier)), cache=tmp_path).raw(TEXTS, task(labels=("bad", "fine")))


def test_an_encoder_like_the_trunk_is_found(mood_classifier, new_classifier, tiny_trunk, tmp_path):
    assert ModelTeacher(open_classifier(str(mood_classifier)), cache=tmp_path).encoder_like(tiny_trunk) is not None
    other = new_classifier("DistilBert", "SequenceClassification", ("no", "yes"))
    assert ModelTeacher(open_classifier(str(other)), cache=tmp_path).encoder_like(tiny_trunk) is None


def test_batches_are_bounded_by_their_padded_tokens():
    assert list(in_batches([5, 1, 9, 2, 2], 8)) == [[1, 3, 4], [0], [2]]
