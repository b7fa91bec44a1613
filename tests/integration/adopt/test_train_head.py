"""train-head with a fine-tuned classifier as the teacher: alone, beside labels, and mistakes."""

import json

import pytest
from click.testing import CliRunner

from onetrunk.cli.train_head import train_head
from onetrunk.nn.bundle import load_bundle
from tests.fixtures.tasks import mood_rows, write_rows

TASK = 'labels = ["good", "bad"]\n[recipe]\ntap = 2\nlayers = 2\nepochs = 1\nmax_length = 32\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mood.toml").write_text(TASK)
    (tmp_path / "texts.txt").write_text("".join(f"{row['sentence']}\n" for row in mood_rows(100, 1)))
    write_rows(tmp_path / "train.jsonl", mood_rows(40, 2))
    return tmp_path


def run(folder, trunk, *arguments):
    places = ("--heads", folder / "heads", "--cache", folder / "cache", "--trunk", trunk, "--device", "cpu")
    return CliRunner().invoke(train_head, [str(one) for one in (folder / "mood.toml", *arguments, *places)])


def test_a_model_alone_teaches_a_head(folder, tiny_trunk_folder, mood_classifier):
    result = run(folder, tiny_trunk_folder, "--teacher", mood_classifier, "--texts", folder / "texts.txt", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    spec = load_bundle(folder / "heads" / "mood").spec
    assert spec.data["train_rows"] + spec.data["dev_rows"] == len({row["sentence"] for row in mood_rows(100, 1)})
    assert spec.data["dev_labels"] == "the teacher's answers"
    assert spec.data["teacher_family"] == "bert"
    assert found["task"] == "mood"


def test_texts_are_also_found_where_the_data_are(folder, tiny_trunk_folder, mood_classifier):
    (folder / "data" / "more").mkdir(parents=True)
    (folder / "texts.txt").rename(folder / "data" / "more" / "texts.txt")
    taught = ("--teacher", mood_classifier, "--texts", "more/texts.txt")
    result = run(folder, tiny_trunk_folder, *taught, "--data", folder / "data")
    assert result.exit_code == 0, result.output
    assert load_bundle(folder / "heads" / "mood").spec.data["train"] == "more/texts.txt", "no folder of this machine"
    none = run(folder, tiny_trunk_folder, *taught, "--data", folder, "--force")
    assert "more/texts.txt: no such file of texts" in none.stderr.splitlines()[-1]


def test_labels_and_a_model_teach_together(folder, tiny_trunk_folder, mood_classifier):
    (folder / "mood.toml").write_text(f'train = "train.jsonl"\ndev = 0.3\n{TASK}')
    result = run(folder, tiny_trunk_folder, "--teacher", mood_classifier, "--texts", folder / "texts.txt")
    assert result.exit_code == 0, result.output
    data = load_bundle(folder / "heads" / "mood").spec.data
    assert 0 < data["train_rows_labelled"] < 40
    assert data["train_rows"] > 90
    assert data["dev_labels"] == "the data's own"


def test_mistakes_are_told_in_one_line(folder, tiny_trunk_folder, mood_classifier, new_classifier):
    tagger = new_classifier("Bert", "TokenClassification", ("good", "bad"))
    for arguments, message in (
        (("--teacher", tagger, "--texts", folder / "texts.txt"), "is of kind tagging, and not classification as its"),
        (("--teacher", mood_classifier), "it names no train data, so give texts"),
        (("--teacher", mood_classifier, "--texts", folder / "none.txt"), "none.txt: no such file of texts"),
        (("--teacher", folder / "nowhere", "--texts", folder / "texts.txt"), "nowhere"),
    ):
        result = run(folder, tiny_trunk_folder, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    (folder / "mood.toml").write_text(f'train = "train.jsonl"\ndev = 0.3\n{TASK}')
    result = run(folder, tiny_trunk_folder, "--texts", folder / "texts.txt")
    assert result.exit_code == 2, result.output
    assert "texts without labels need a teacher: give --teacher too" in result.stderr
