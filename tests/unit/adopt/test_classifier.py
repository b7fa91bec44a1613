"""What a classifier's configuration says, and folders that are refused in one line."""

import json
import shutil

import pytest

from onetrunk.adopt.classifier import name_of, open_classifier, split_tag
from onetrunk.protocol.errors import UserError
from tests.fixtures.classifiers import TAGS


@pytest.fixture
def folder(mood_classifier, tmp_path):
    return shutil.copytree(mood_classifier, tmp_path / "mood")


def change(folder, file="config.json", **keys):
    path = folder / file
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_labels_and_kind_are_those_of_the_configuration(folder):
    found = open_classifier(str(folder))
    assert (found.name, found.kind, found.labels, found.model_type) == (
        "mood",
        "classification",
        ("bad", "good"),
        "bert",
    )
    assert len(found.sha256) == 64
    assert "no problem_type" in found.notes[0]


@pytest.mark.parametrize(
    ("keys", "kind", "labels"),
    [
        ({"problem_type": "multi_label_classification"}, "multilabel", ("bad", "good")),
        ({"problem_type": "single_label_classification"}, "classification", ("bad", "good")),
        ({"id2label": {"0": "LABEL_0"}}, "regression", None),
        ({"problem_type": "regression", "id2label": {"0": "stars"}}, "regression", None),
        (
            {"architectures": ["BertForTokenClassification"], "id2label": dict(enumerate(TAGS))},
            "tagging",
            ("person", "place"),
        ),
    ],
)
def test_kind_follows_from_problem_type_outputs_and_class(folder, keys, kind, labels):
    change(folder, **keys)
    found = open_classifier(str(folder))
    assert (found.kind, found.labels) == (kind, labels)


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        (
            {"architectures": ["BertForTokenClassification"]},
            "classification",
            "architectures is BertForTokenClassification, so the model is of kind tagging, and not classification",
        ),
        ({}, "tagging", "so the model is of kind classification or multilabel or regression, and not tagging"),
        ({"problem_type": "single_label_classification"}, "multilabel", "of kind classification, and not multilabel"),
    ],
)
def test_a_model_of_another_kind_than_its_task_is_refused(folder, keys, kind, message):
    change(folder, **keys)
    with pytest.raises(UserError, match=message):
        open_classifier(str(folder), task_kind=kind)


def test_a_teacher_without_problem_type_is_of_the_kind_of_its_task(folder):
    found = open_classifier(str(folder), task_kind="multilabel")
    assert (found.kind, found.notes) == ("multilabel", ())


def test_the_kind_that_is_given_wins_over_problem_type(folder):
    change(folder, problem_type="single_label_classification")
    found = open_classifier(str(folder), kind="multilabel")
    assert (found.kind, found.labels) == ("multilabel", ("bad", "good"))
    assert found.notes == (
        f"{folder}: problem_type is single_label_classification, and --kind has it read as multilabel",
    )
    assert not open_classifier(str(folder), kind="classification").notes
    with pytest.raises(UserError, match="2 outputs, and kind regression: models with one number are read"):
        open_classifier(str(folder), kind="regression")
    change(folder, id2label={"0": "stars"})
    with pytest.raises(UserError, match=r"one output, and kind classification: .* takes it by --kind"):
        open_classifier(str(folder))
    assert open_classifier(str(folder), kind="regression").kind == "regression"
    change(folder, architectures=["BertForTokenClassification"])
    with pytest.raises(UserError, match="cannot be read as regression: leave --kind out") as error:
        open_classifier(str(folder), kind="regression")
    assert "task" not in str(error.value)


def test_another_weight_is_another_model(folder):
    before = open_classifier(str(folder)).sha256
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert open_classifier(str(folder)).sha256 != before


@pytest.mark.parametrize(("threshold", "expected"), [(0.3, (0.3, 0.3)), ([0.2, 0.9], (0.2, 0.9))], ids=["one", "each"])
def test_thresholds_of_a_multilabel_model_are_read(folder, threshold, expected):
    change(folder, problem_type="multi_label_classification", thresholds=threshold)
    assert open_classifier(str(folder)).thresholds == expected


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"auto_map": {"AutoModel": "code.py--Model"}}, "code that comes with the model, which is not run"),
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights names a file of weights; allowed are"),
        ({"attn_implementation": "owner/kernel"}, "code of a hub, which is not run: remove the key"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which is no classifier"),
        ({"architectures": None}, "does not say what the model is for: give --kind"),
        ({"problem_type": "ranking"}, "allowed are single_label_classification"),
        ({"id2label": {"0": "a", "2": "b"}}, "does not name outputs 0, 1"),
        ({"id2label": {"0": "a", "1": "a"}}, "does not name outputs 0, 1"),
        ({"id2label": {"x": "a"}}, "is not a table of numbers and names"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; allowed are 1 to"),
        ({"problem_type": "multi_label_classification", "thresholds": [0.5]}, "thresholds are numbers between 0 and 1"),
        ({"architectures": ["BertForTokenClassification"]}, "none of its tags is O"),
        ({"problem_type": "regression"}, "models with one number"),
    ],
)
def test_what_cannot_be_adopted_is_told_in_one_line(folder, keys, message):
    change(folder, **keys)
    with pytest.raises(UserError, match=message) as raised:
        open_classifier(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.hostile
def test_code_of_a_tokenizer_is_refused(folder):
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.py", None]})
    with pytest.raises(UserError, match=r"tokenizer_config.json: auto_map names code"):
        open_classifier(str(folder))


@pytest.mark.hostile
@pytest.mark.parametrize("longest", [0, -5, "x", float("nan")])
def test_a_tokenizer_that_reads_nothing_is_refused(folder, longest):
    change(folder, "tokenizer_config.json", model_max_length=longest)
    with pytest.raises(UserError, match=r"tokenizer_config.json: model_max_length is .*longest text in tokens"):
        open_classifier(str(folder))


def test_an_adapter_is_no_whole_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(UserError, match=r"an adapter of PEFT.*save what model.merge_and_unload\(\) returns"):
        open_classifier(str(folder))


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "said.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"a file, and no model; .*train-head TASK.toml --teacher"):
        open_classifier(str(tmp_path / "said.jsonl"))


@pytest.mark.hostile
def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not read, as it may hold code"):
        open_classifier(str(folder))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json in it; give a folder that save_pretrained has written"):
        open_classifier(str(tmp_path))
    with pytest.raises(UserError, match="no such folder; give a folder of a model, or a hub id"):
        open_classifier(str(tmp_path / "nothing here"))


def test_labels_of_the_command_line_replace_those_without_names(folder):
    change(folder, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert "have no names but LABEL_0 to LABEL_1" in "".join(open_classifier(str(folder)).notes)
    assert open_classifier(str(folder), labels=("no", "yes")).labels == ("no", "yes")
    with pytest.raises(UserError, match="has 2 outputs, and --labels names 3"):
        open_classifier(str(folder), labels=("a", "b", "c"))


@pytest.mark.parametrize(
    ("source", "name"),
    [("org/Bert-Base_Spam", "bert_base_spam"), ("a/b/42-intents", "m_42_intents"), ("a/Zürich", "zurich")],
)
def test_a_task_is_named_after_the_model(source, name):
    assert name_of(source) == name


def test_a_task_is_named_after_a_file_without_its_endings(tmp_path):
    (tmp_path / "urgency.jsonl.gz").touch()
    assert name_of(str(tmp_path / "urgency.jsonl.gz")) == "urgency"


@pytest.mark.parametrize(
    ("output", "found"), [("B-PER", ("B", "PER")), ("O", ("O", "")), ("PER", ("I", "PER")), ("S-ORG", ("S", "ORG"))]
)
def test_tags_of_several_schemes(output, found):
    assert split_tag(output) == found
