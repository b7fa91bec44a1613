"""Data are checked before anything heavy is loaded: a fault in line 2 is told at once."""

import subprocess
import sys

import pytest

from onetrunk.cli.training_options import check_data
from onetrunk.tasks import Task
from tests.fixtures.tasks import write_rows


@pytest.mark.parametrize("command", ["train_head.train_head", "search_heads.search_heads"])
def test_a_fault_in_the_data_is_told_without_torch(tmp_path, command):
    (tmp_path / "mood.toml").write_text('labels = ["bad", "good"]\ntrain = "train.csv"\ndev = 0.2\n')
    (tmp_path / "train.csv").write_text("sentence,label\na film,goood\nanother,bad\n")
    module, name = command.split(".")
    arguments = [*(["run"] if name == "search_heads" else []), str(tmp_path / "mood.toml")]
    code = (
        "import sys\nfrom click.testing import CliRunner\n"
        f"from onetrunk.cli.{module} import {name}\n"
        f"result = CliRunner().invoke({name}, {arguments!r})\n"
        "assert result.exit_code == 2, result.output\n"
        "assert 'line 2 (label' in result.output, result.output\n"
        "assert not {'torch', 'transformers', 'sklearn', 'scipy', 'joblib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fault_in_a_bundle_is_told_without_torch(tmp_path):
    (tmp_path / "heads" / "mood").mkdir(parents=True)
    (tmp_path / "heads" / "mood" / "head.json").write_text('{"task": "mood", "tap": -1}')
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom onetrunk.cli.build_repo import build_repo\n"
        "result = CliRunner().invoke(build_repo, ['--tasks', 'all'])\n"
        "assert result.exit_code == 2, result.output\n"
        "assert 'head.json: ' in result.output, result.output\n"
        "assert not {'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("rows", "output", "told"), [(3000, "crf", True), (3000, "softmax", False), (20, "crf", False)]
)
def test_a_kind_that_is_slow_to_train_says_so_where_it_is_chosen(tmp_path, rows, output, told):
    write_rows(tmp_path / "train.jsonl", [{"tokens": ["a", f"b{one}"], "tags": ["O", "B-x"]} for one in range(rows)])
    task = Task(
        name="spans",
        kind="tagging",
        labels=("x",),
        options={"output": output},
        train="train.jsonl",
        dev=0.2,
        text_field="tokens",
        label_field="tags",
        folder=tmp_path,
    )
    notes = check_data([task], None, False)
    assert len(notes) == told
    assert all('options = {output = "softmax"} in the task file is quicker' in note for note in notes)
