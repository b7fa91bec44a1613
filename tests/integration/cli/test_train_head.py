"""The command ``train-head``: results to stdout, the rest to stderr, and exit codes that mean something."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from onetrunk.cli.train_head import train_head

TOML = """
labels = ["bad", "good"]
train = "train.jsonl"
dev = "dev.jsonl"
[recipe]
tap = 1
epochs = 1
max_length = 32
"""


@pytest.fixture
def invoke(mood, tiny_trunk_folder, tmp_path, monkeypatch):
    """Runs train-head in a folder with the tasks ``one`` and ``two``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    for name in ("one", "two"):
        (tmp_path / "tasks" / f"{name}.toml").write_text(TOML)
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        common = ["--trunk", str(tiny_trunk_folder), "--data", str(tmp_path), "--device", "cpu", "--precision", "fp32"]
        return CliRunner().invoke(train_head, [*common, *arguments])

    return run


def test_all_tasks_are_trained_and_put_into_a_table(invoke, tmp_path):
    result = invoke("--tasks", "all", "--results", "docs/heads.md")
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["task", "tap", "layers"]
    assert [row.split()[:3] for row in rows] == [["one", "1", "1"], ["two", "1", "1"]]
    assert "one: accuracy" in result.stderr
    assert sorted(path.parent.name for path in (tmp_path / "heads").glob("*/head.safetensors")) == ["one", "two"]
    table = (tmp_path / "docs" / "heads.md").read_text()
    assert "| one | 1 | 1 | accuracy " in table
    values = json.loads((tmp_path / "docs" / "heads.json").read_text())
    assert [head["task"] for head in values["heads"]] == ["one", "two"]


def test_what_of_a_checkpoint_was_left_out_is_said_once(invoke, tiny_trunk_folder, tmp_path):
    from transformers import BertForSequenceClassification

    classifier = shutil.copytree(tiny_trunk_folder, tmp_path / "classifier")
    BertForSequenceClassification.from_pretrained(classifier, num_labels=3).save_pretrained(classifier)
    result = invoke("one", "two", "--json", "--trunk", str(classifier))
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)) == 2
    assert result.stderr.count("classifier.weight") == 1


def test_options_override_the_recipe(invoke):
    arguments = (
        "--tap 2 --layers 2 --query learned --epochs 2 --lr 1e-3 --batch-size 50 --seed 3 --max-length 20 --json"
    )
    result = invoke("one", *arguments.split())
    assert result.exit_code == 0, result.output
    [head] = json.loads(result.stdout)
    assert [head[key] for key in ("tap", "layers", "query", "max_length")] == [2, 2, "learned", 20]
    recipe = head["recipe"]
    assert [recipe[key] for key in ("epochs", "learning_rate", "batch_size", "seed")] == [2, 1e-3, 50, 3]
    assert len(head["epoch_scores"]) == 2


def test_a_file_of_soft_labels_teaches_a_task_without_data(invoke, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    soft = [
        {
            "text": row["sentence"],
            "probabilities": {row["label"]: 0.9, {"good": "bad", "bad": "good"}[row["label"]]: 0.1},
        }
        for row in rows
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in soft))
    (tmp_path / "tasks" / "said.toml").write_text('labels = ["bad", "good"]\n[recipe]\ntap = 0\nmax_length = 32\n')
    result = invoke("said", "--teacher", str(tmp_path / "said.jsonl"), "--epochs", "6", "--lr", "3e-3", "--json")
    assert result.exit_code == 0, result.output
    [head] = json.loads(result.stdout)
    assert head["scores"]["accuracy"] > 0.9
    assert head["data"]["teacher_name"] == "said.jsonl"
    assert head["data"]["train_rows"] + head["data"]["dev_rows"] == len({row["sentence"] for row in rows})
    said = head["fitted"]["soft_dev"]
    assert said["best_accuracy"] == 0.9
    assert said["divergence_nats"] < 0.2, "even odds are 0.37 away from the file"
    agreement = f"accuracy {100 * head['scores']['accuracy']:.1f} (agreement with the teacher)"
    assert f"said: {agreement}, trained in " in result.stderr
    # It brings its texts, so others are of no use.
    refused = invoke("said", "--teacher", str(tmp_path / "said.jsonl"), "--texts", str(tmp_path / "train.jsonl"))
    assert refused.exit_code == 2
    assert "said.jsonl is a file of soft labels, which brings its own texts" in refused.stderr
    refused = invoke("said", "--teacher", str(tmp_path / "said.jsonl"), "--variants", "2")
    assert refused.exit_code == 2
    assert "said.jsonl is a file of soft labels" in refused.stderr
    assert "leave --variants out" in refused.stderr
    # A fault is told by the row, before torch is loaded.
    soft[1]["probabilities"] = {"good": 0.3}
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in soft))
    result = invoke("said", "--teacher", str(tmp_path / "said.jsonl"))
    assert result.exit_code == 2
    assert "line 2 (no 'label', and the probabilities sum to 0.3" in result.stderr


def test_changed_copies_need_a_teacher(invoke):
    refused = invoke("one", "--variants", "2")
    assert refused.exit_code == 2
    assert "--variants: changed copies of texts need a teacher" in refused.stderr
    refused = invoke("one", "--variants", "2", "--curve", "--teacher", "anything")
    assert refused.exit_code == 2
    assert "changed copies of texts have none: leave --variants out" in refused.stderr


def test_curve_is_told_and_written(invoke, tmp_path):
    result = invoke("one", "--curve", "--results", "heads.md")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[3:]]
    assert rows[0][:3] == ["task", "train", "rows"]
    assert [row[2] for row in rows[1:]] == ["12.5", "25", "50", "100"]
    # It has learned nothing yet.
    assert "no better than the commonest answer alone, 51.7, so nothing can be said about more labels" in result.stderr
    assert "## Learning curves" in (tmp_path / "heads.md").read_text()
    [head] = json.loads((tmp_path / "heads.json").read_text())["heads"]
    assert [point["share"] for point in head["curve"]["points"]] == [0.125, 0.25, 0.5, 1]
    assert head["curve"]["points"][3]["texts"] == head["data"]["train_rows"]
    assert head["curve"]["note"] in (tmp_path / "heads.md").read_text()


def test_second_run_trains_nothing_and_says_so(invoke):
    first = invoke("one", "--json")
    again = invoke("one", "--json")
    assert "one: finished earlier" in again.stderr
    assert json.loads(again.stdout)[0]["already_there"]
    assert json.loads(again.stdout)[0]["scores"] == json.loads(first.stdout)[0]["scores"]


def test_later_failure_keeps_and_prints_what_is_finished(invoke, tmp_path):
    (tmp_path / "tasks" / "two.toml").write_text(TOML.replace("tap = 1", "tap = 4"))
    result = invoke("one", "two")
    assert result.exit_code == 2
    assert result.stdout.splitlines()[1].startswith("one ")
    assert "error: task two: tap 4 has no layer above it" in result.stderr
    assert (tmp_path / "heads" / "one" / "head.json").is_file()


def test_data_of_all_tasks_are_checked_before_one_is_trained(invoke, tmp_path):
    (tmp_path / "tasks" / "two.toml").write_text(TOML.replace("dev.jsonl", "none.jsonl"))
    result = invoke("one", "two")
    assert result.exit_code == 2
    assert "error: task two: no dev data 'none.jsonl'" in result.stderr
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--tasks all"),
        (["one", "--tasks", "all"], "--tasks all"),
        (["on"], "no task 'on' (did you mean one?); there are: one, two"),
        (["one", "tasks/again.toml"], "its task one is also that of"),
        (["one", "--lr", "nan"], "--lr nan should be "),
        (["one", "--tasks", "two,one"], "one is named twice"),
        (["one", "--tap", "2", "--layers", "3"], "a head on tap 2 of this trunk has 2 layers at most, not 3"),
        (
            ["one", "--teacher", "nofolder"],
            "nofolder: no such folder or file; give the folder of a finished head, a",
        ),
        (["one", "--teacher", "tasks"], "--teacher tasks: neither a head nor a model is in it; give the folder of a "),
        (["one", "--teacher", "limbs/all"], "--teacher limbs/all: a limb, which answers nothing"),
        (["one", "--tap", "4"], "tap 4 has no layer above it"),
        (["one", "--results", "heads.txt"], "--results heads.txt: give a file *.md"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(invoke, tmp_path, arguments, message):
    (tmp_path / "tasks" / "again.toml").write_text('name = "one"\n' + TOML)
    if "on" in arguments:
        (tmp_path / "tasks" / "again.toml").unlink()
    (tmp_path / "limbs" / "all").mkdir(parents=True)
    (tmp_path / "limbs" / "all" / "limb.json").write_text("{}")
    result = invoke(*arguments)
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert message in line


def test_divergence_is_exit_code_1(invoke):
    result = invoke("one", "--lr", "1e38")
    assert result.exit_code == 1
    assert "train with a lower --lr" in result.stderr


def test_help_has_examples_and_needs_no_torch():
    code = (
        "import sys; from onetrunk.cli.train_head import train_head\n"
        "try: train_head(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'sklearn', 'pydantic'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train-head --tasks all" in result.stdout
