"""The installed wheel, from a CSV file to a running server: each command in a folder that is not the checkout."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.wheel import Installation

pytestmark = pytest.mark.slow

TASK = """
labels = ["calm", "urgent"]
train = "train.csv"
dev = "dev.csv"
[recipe]
tap = 1
layers = 1
epochs = 3
max_length = 32
"""


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def repository(installation: Installation, tiny_trunk_folder: Path) -> Path:
    """A head that was trained on a small CSV file, and the repository that was built of it."""
    draw = random.Random(0)
    for name, rows in (("train.csv", 64), ("dev.csv", 16)):
        with (installation.folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["sentence", "label"])
            for row in range(rows):
                thing = draw.choice(["film", "music", "light"])
                writer.writerow([f"the {thing} is {('good', 'bad')[row % 2]}", ("calm", "urgent")[row % 2]])
    (installation.folder / "mood.toml").write_text(TASK)
    trunk = ("--trunk", tiny_trunk_folder)
    succeed(installation.run("train-head", "mood.toml", *trunk, "--cache", "cache"))
    assert (installation.folder / "heads" / "mood" / "head.safetensors").is_file()
    succeed(installation.run("build-repo", "--tasks", "all", *trunk, "--max-length", "32"))
    return installation.folder / "model_repository"


@pytest.fixture(scope="module")
def urls(installation: Installation, repository: Path) -> Iterator[dict[str, Any]]:
    """The addresses of a server that ``serve-repo`` started."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(
        [installation.python.parent / "serve-repo", "--json", *ports],
        cwd=installation.folder,
        env={**installation.environment, "ONETRUNK_ADMIN_KEY": "a-key"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())
    finally:
        # Not SIGINT: where the tests run in the background, it is ignored from the start.
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def test_a_text_is_answered_and_a_head_is_deployed(
    installation: Installation, urls: dict[str, Any], tiny_trunk_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "a-key")
    answer = succeed(installation.run("ask-repo", "the film is good", "--url", urls["grpc"], "--json"))
    assert json.loads(answer)["predictions"].keys() == {"mood"}
    deploy = ("deploy-head", "--url", urls["grpc"])
    succeed(installation.run(*deploy, "heads/mood", "--trunk", tiny_trunk_folder))
    assert succeed(installation.run(*deploy, "--verify")) == "manifest, disk and server agree\n"
    code = f"from onetrunk.client import Client; print(*Client({urls['grpc']!r}).tasks())"
    assert succeed(installation.run("python", "-c", code)).split() == ["mood"]
