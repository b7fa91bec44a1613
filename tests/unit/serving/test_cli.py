"""`serve-repo` as a command: help, exit codes, one line for a mistake. Serving itself: running/."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.serving.cli import announce, serve_repo


def test_help_has_examples_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from onetrunk.serving.cli import serve_repo\n"
        "try:\n    serve_repo(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'grpc', 'tritonclient'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "serve-repo out/repo --grpc-port 9001" in done.stdout
    assert "127.0.0.1]" in done.stdout, "defaults are shown"


def test_an_empty_repository_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(serve_repo, [str(tmp_path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path} holds no models: run build-repo first\n"


def test_a_taken_port_is_one_line_and_exit_code_1(repository: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        result = CliRunner().invoke(serve_repo, [str(repository), "--http-port", str(port), "--grpc-port", "0"])
    assert result.exit_code == 1
    assert result.stderr == f"error: port {port} is in use; give another with --http-port\n"


@pytest.mark.parametrize("arguments", [["--http-port", "70000"], ["--grpc-port", "x"], ["--host", "no.such.invalid"]])
def test_options_that_make_no_sense_are_exit_code_2(repository: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(serve_repo, [str(repository), *arguments])
    assert result.exit_code == 2


def test_a_log_that_cannot_be_written_is_exit_code_2(repository: Path, tmp_path: Path) -> None:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    result = CliRunner().invoke(serve_repo, [str(repository), *ports, "--log", str(tmp_path / "no" / "triton.log")])
    assert result.exit_code == 2
    assert result.stderr == f"error: the log {tmp_path}/no/triton.log cannot be written: No such file or directory\n"


def test_every_task_is_announced_with_what_it_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {
        "embedding": {"kind": "embedding", "form": "single", "width": 384, "on_request": True},
        "grade": {"kind": "regression", "form": "pair", "range": (0, 5)},
        "mood": {"kind": "classification", "form": "single", "labels": ("bad", "[red]good")},
    }
    tasks = {
        name: TaskInfo.model_validate({"name": name, "metric": "m", "tap": 1, "layers": 1, "version": 1, **fields})
        for name, fields in about.items()
    }
    urls = {"grpc_url": "g", "http_url": "h", "metrics_url": "m", "log_path": tmp_path, "tasks": tasks}
    announce(SimpleNamespace(**urls), tmp_path, Console(stderr=True, width=120), as_json=False)  # type: ignore[arg-type]
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().err.splitlines()[2:5]]
    assert [(row[0], row[3].rstrip()) for row in rows] == [
        ("embedding", "a vector of 384 numbers, if it is named"),
        ("grade", "0 to 5"),
        ("mood", "bad, [red]good"),
    ]
