"""Data are checked before anything heavy is loaded: a fault in line 2 is told at once."""

import subprocess
import sys

import pytest


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
