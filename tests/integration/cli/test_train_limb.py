"""The command ``train-limb``, and ``train-head --limb`` on what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onetrunk.cli.refit_head import refit_head
from onetrunk.cli.train_head import train_head
from onetrunk.cli.train_limb import train_limb
from onetrunk.tasks import Task

TOML = """
labels = ["bad", "good"]
train = "train.jsonl"
dev = "dev.jsonl"
[recipe]
tap = 3
epochs = 1
max_length = 32
"""

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(mood: Task, tiny_trunk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in a folder with the tasks ``one`` and ``two``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    for name in ("one", "two"):
        (tmp_path / "tasks" / f"{name}.toml").write_text(TOML)
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))

    def run(command: object, *arguments: str) -> Result:
        common = ["--trunk", str(tiny_trunk_folder), "--data", str(tmp_path), "--device", "cpu"]
        return CliRunner().invoke(command, [*common, *arguments])  # type: ignore[arg-type]

    return run


def test_a_limb_is_trained_and_a_head_on_it_is_trained_and_refitted(invoke: Invoke, tmp_path: Path) -> None:
    family = ("pairs", "--tasks", "one,two", "--tap", "1", "--epochs", "1", "--max-length", "32")
    result = invoke(train_limb, *family)
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.splitlines()
    assert header.split()[:2] == ["task", "metric"]
    assert [row.split()[0] for row in rows] == ["one", "two"]
    assert "next: train-head TASK --limb limbs/pairs" in result.stderr
    again = json.loads(invoke(train_limb, *family, "--json").stdout)
    assert again["epochs"] == []
    assert again["limb"].startswith("pairs-1+1@")

    trained = invoke(train_head, "one", "--limb", "limbs/pairs", "--json")
    assert trained.exit_code == 0, trained.output
    spec = json.loads((tmp_path / "heads" / "one" / "head.json").read_text())
    assert (spec["limb"], spec["tap"], spec["layers"]) == (again["limb"], 2, 1)
    refitted = invoke(refit_head, "one", "--dry-run", "--json")
    assert refitted.exit_code == 0, refitted.output
    assert json.loads(refitted.stdout)[0]["scores"] == pytest.approx(spec["scores"])


def test_finished_heads_teach_a_limb(invoke: Invoke, tmp_path: Path) -> None:
    family = ("pairs", "--tasks", "one,two", "--tap", "1", "--epochs", "1", "--max-length", "32")
    none = invoke(train_limb, *family, "--teacher", "heads")
    assert none.exit_code == 2
    assert "--teacher heads: no head of one, two is there" in none.stderr.splitlines()[-1]
    assert invoke(train_head, "one").exit_code == 0
    taught = invoke(train_limb, *family, "--teacher", "heads")
    assert taught.exit_code == 0, taught.output
    assert "taught by finished heads: one; from labels alone: two" in taught.stderr
    found = json.loads(invoke(train_limb, *family, "--teacher", "heads/one", "--json").stdout)
    assert found["epochs"] == [], "one teacher, however it is named"
    assert found["tasks"]["two"]["teacher_sha256"] is None
    assert found["tasks"]["one"]["teacher_sha256"] is not None
    on_limb = ("one", "--limb", "limbs/pairs", "--teacher", "heads/one")
    lost = invoke(train_head, *on_limb)
    assert lost.exit_code == 2
    assert "the new head would take its place" in lost.stderr.splitlines()[-1]
    shorter = invoke(train_head, *on_limb, "--heads", "on_limb")
    assert shorter.exit_code == 0, shorter.output
    assert "a head of 1 layer on tap 3" in (tmp_path / "on_limb" / "one" / "README.md").read_text()
    same = invoke(train_head, *on_limb, "--heads", "on_limb", "--json")
    assert (same.exit_code, "one: finished earlier" in same.stderr) == (0, True)
    other = invoke(train_head, "two", "--teacher", "on_limb/one", "--tap", "2")
    assert other.exit_code == 0, "a head of the same answers may teach a task of another name"
    same = invoke(train_limb, *family, "--teacher", "heads/one", "--teacher", "./heads/one/", "--json")
    assert json.loads(same.stdout)["epochs"] == [], "the same head twice is one"
    twice = invoke(train_limb, *family, "--teacher", "heads", "--teacher", "on_limb/one")
    assert "two heads of task 'one': heads/one and on_limb/one" in twice.stderr.splitlines()[-1]
    told = invoke(train_head, "one", "--teacher", "heads/one/head.json", "--heads", "other")
    assert told.exit_code == 2
    assert "a finished head is named by its folder: --teacher heads/one" in told.stderr.splitlines()[-1]
    in_folder = invoke(train_head, *on_limb[:-1], "heads", "--heads", "on_limb", "--json")
    found = (in_folder.exit_code, "one: finished earlier" in in_folder.stderr)
    assert found == (0, True), "the same teacher, found in the folder of heads"
    moved = tmp_path / "proj"
    moved.mkdir()
    for name in ("limbs", "on_limb"):
        (tmp_path / name).rename(moved / name)
    asked = (train_head, "one", "--tap", "3", "--teacher", "proj/on_limb/one")
    beside = invoke(*asked, "--heads", "taught")
    assert beside.exit_code == 0, "a teacher's limb is beside its folder of heads, wherever the new head goes"
    (moved / "limbs").rename(tmp_path / "away")
    elsewhere = invoke(*asked, "--limbs", "none")
    told = f"none has no folder pairs and {moved}/limbs has no folder pairs and limbs has no folder pairs: give --limbs"
    assert told in elsewhere.stderr.splitlines()[-1]
    (tmp_path / "away").rename(tmp_path / "limbs")
    (moved / "on_limb").rename(tmp_path / "on_limb")
    linked = tmp_path / "link"
    linked.symlink_to(tmp_path / "heads" / "one")
    found = invoke(train_head, *on_limb[:-1], "link", "--heads", "on_limb", "--json")
    assert (found.exit_code, "one: finished earlier" in found.stderr) == (0, True), "the same teacher by another name"
    other = invoke(train_limb, "pairs", "--tasks", "two", "--teacher", "heads/one")
    assert "a head of task 'one', which is not in --tasks (two)" in other.stderr.splitlines()[-1]


def test_each_of_several_heads_learns_from_its_own_in_a_folder(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke(train_head, "one").exit_code == 0
    several = ("--tasks", "one,two", "--tap", "2", "--heads", "taught")
    taught = invoke(train_head, *several, "--teacher", "heads")
    assert taught.exit_code == 0, taught.output
    assert "note: from labels alone: two (no head in heads)" in taught.stderr
    data = {task: json.loads((tmp_path / "taught" / task / "head.json").read_text())["data"] for task in ("one", "two")}
    assert "teacher_name" in data["one"]
    assert "teacher_name" not in data["two"]
    more = ("one", "--tap", "2", "--teacher", "heads", "--variants", "2", "--heads", "more", "--json")
    (found,) = json.loads(invoke(train_head, *more).stdout)
    rows = data["one"]["train_rows"]
    assert rows == found["data"]["train_rows_labelled"] < found["data"]["train_rows"] < 3 * rows
    assert found["data"]["train"] == "train.jsonl, 2 changed copies of each text"
    (tmp_path / "texts.txt").write_text("a fine film\n")
    none = invoke(train_head, "two", "--tap", "2", "--teacher", "heads", "--heads", "taught")
    assert "--teacher heads: no head of two is there, only of one" in none.stderr.splitlines()[-1]
    (tmp_path / "both" / "one").mkdir(parents=True)
    for place in (tmp_path / "both" / "config.json", tmp_path / "both" / "one" / "head.json"):
        place.write_text("{}")
    both = invoke(train_head, "one", "--tap", "2", "--teacher", "both", "--heads", "taught")
    assert "--teacher both: a teacher itself, and both/one in it is a head: name one" in both.stderr.splitlines()[-1]
    for arguments, said in (
        (("--teacher", "heads/one"), "nor can one teacher know 2 tasks: name one task"),
        (("--teacher", "nowhere"), "--teacher nowhere: neither a folder of heads of one, two"),
        (("--teacher", "heads", "--texts", "texts.txt"), "texts without labels are read for one task"),
    ):
        refused = invoke(train_head, *several, *arguments)
        assert refused.exit_code == 2
        assert said in refused.stderr.splitlines()[-1]
    (tmp_path / "tasks" / "two.toml").write_text(TOML.replace('train = "train.jsonl"', ""))
    unlearned = invoke(train_head, *several, "--teacher", "heads")
    assert (
        "task two: it names no train data, so name it alone, with --teacher and --texts"
        in unlearned.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (train_limb, ("Pairs", "--tasks", "one"), "Pairs: a limb's name has lowercase letters"),
        (train_limb, ("../up", "--tasks", "one"), "../up: a limb's name has lowercase letters"),
        (train_limb, ("pairs", "--tasks", "three"), "three"),
        (
            train_limb,
            ("pairs", "--tasks", "one", "--tap", "4"),
            "tap 4 has fewer than 2 layers above it on this trunk: give 0 to 2",
        ),
        (train_limb, ("pairs", "--tasks", "one", "--lr", "-1"), "'--lr': -1.0 is not in the range x>0"),
        (train_limb, ("pairs", "--tasks", "one,one"), "one is named twice: name each task once"),
        (
            train_limb,
            ("pairs", "--tasks", "one", "--teacher", "limbs/all"),
            "limbs/all: a limb, which answers nothing",
        ),
        (train_limb, ("pairs", "--tasks", "one", "--tap", "2", "--layers", "2"), "has 1 layer at most, so that heads"),
        (train_head, ("one", "--limb", "limbs/none"), "limbs/none: no limb.json in it"),
        (train_head, ("one", "--limb", "limbs/none", "--tap", "2"), "--limb says where heads stand: leave --tap out"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    invoke: Invoke, tmp_path: Path, command: object, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "limbs" / "all").mkdir(parents=True)
    (tmp_path / "limbs" / "all" / "limb.json").write_text("{}")
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert "note:" not in result.output, "what is wrong comes before what is worth knowing"


def test_a_limb_of_one_task_gets_a_note(invoke: Invoke) -> None:
    result = invoke(train_limb, "pairs", "--tasks", "one", "--tap", "1", "--epochs", "1", "--max-length", "32")
    assert result.exit_code == 0, result.output
    assert "note: a limb of one task: train-head does that" in result.stderr.splitlines()
