"""Drift through the whole line: dev data, bundle, repository, a real Triton, the front, and `deploy-head --list`."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from onetrunk.cli.deploy_head import deploy_head
from onetrunk.client import Client
from onetrunk.serving import Server
from onetrunk.serving.front.settings import Sampling
from tests.fixtures.tasks import mood_rows

pytestmark = pytest.mark.slow

DEV = mood_rows(300, seed=2)


@pytest.fixture
def repository(mood_repository: Path) -> Path:
    """The repository that these tests serve."""
    return mood_repository


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[Server]:
    sample = Sampling(path=tmp_path / "texts.jsonl", size=50)
    with Server(
        repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=1.0, front_workers=2, sample=sample
    ) as running:
        yield running


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def predict(server: Server, texts: list[str]) -> None:
    body = json.dumps({"texts": texts}).encode()
    request = urllib.request.Request(f"http://{server.http_url}/v1/predict", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(json.load(answer)["answers"]) == len(texts)


def listed(server: Server, repository: Path, *options: str) -> Any:
    result = CliRunner().invoke(
        deploy_head, ["--list", "--repository", str(repository), "--url", server.grpc_url, *options]
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def drift(server: Server, repository: Path) -> dict[str, Any]:
    """What the list says of drift; nothing if the server did not answer in the time that the list has for it."""
    [row] = json.loads(listed(server, repository, "--json"))
    return row["drift"] or {}


def wait_for_answers(server: Server, repository: Path, count: int) -> dict[str, Any]:
    """What the list says of drift as soon as so many answers are counted."""
    found: dict[str, Any] = {}

    def counted() -> bool:
        nonlocal found
        found = drift(server, repository)
        return bool(found.get("answers") == count)

    wait_for(counted)
    return found


def test_texts_of_another_distribution_are_seen(server: Server, repository: Path, tmp_path: Path) -> None:
    texts = [row["sentence"] for row in DEV]
    wait_for_answers(server, repository, 0)  # the server's own questions do not count
    # Half of them through the JSON endpoints, half through protocol v2, and two workers.
    for start in range(0, 150, 50):
        predict(server, texts[start : start + 50])
    with Client(server.grpc_url) as client:
        client.predict(texts[150:])
    found = wait_for_answers(server, repository, 300)
    assert max(found["psi"].values()) < 0.1
    assert set(found["psi"]) == {"labels", "confidence"}
    assert "0.0" in listed(server, repository)

    for _ in range(3):
        predict(server, ["the film was very good"] * 200)
    found = wait_for_answers(server, repository, 900)
    assert found["psi"]["labels"] > 0.25
    assert f" {max(found['psi'].values()):.2f} " in listed(server, repository)
    with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
        assert f'onetrunk_drift_psi{{of="labels",task="mood"}} {found["psi"]["labels"]}' in answer.read().decode()

    server.stop()
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 50
    assert {line["of"] for line in lines} == {750}, "of the JSON endpoints only"
    [offline] = json.loads(
        CliRunner().invoke(deploy_head, ["--list", "--repository", str(repository), "--offline", "--json"]).stdout
    )
    assert offline["drift"] is None
