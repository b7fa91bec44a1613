"""The JSON endpoints before a real Triton: the examples of the OpenAPI document, and jevcompat's requirements."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onetrunk.serving import Server
from tests.fixtures.handmade_repository import TASKS
from tests.fixtures.jevcompat_tasks import NOT_SUITED, TASKS_OF_JEVCOMPAT
from tests.unit.serving.front.test_openapi import calls

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[..., Path]) -> Iterator[str]:
    """The address of a front before a Triton with many heads."""
    repository = tmp_path_factory.mktemp("doors") / "model_repository"
    # One task with two labels comes first: jevcompat falls back to it for questions without a name.
    make_repository(repository, {**TASKS_OF_JEVCOMPAT, **TASKS})
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        yield f"http://{server.http_url}"


def ask(url: str, method: str, path: str, body: Any) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_the_examples_of_the_document_run(url: str) -> None:
    document = ask(url, "GET", "/openapi.json", None)
    asked = calls(document)
    assert {path for _, path, body, _ in asked if body} >= {"/v1/predict", "/classify", "/v1/systemone"}
    for method, path, body, schema in asked:
        answer = ask(url, method, path, body)
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer)


def test_jevcompat(url: str, tmp_path: Path) -> None:
    found = tmp_path / "report.json"
    command = [Path(sys.executable).with_name("jevcompat"), "test", url, "--json", found]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, (
        f"the verdict is 'not conformant', since two cannot be met:\n{done.stdout}{done.stderr}"
    )
    results = json.loads(found.read_text())["results"]
    assert {one["id"] for one in results if one["status"] != "pass"} == NOT_SUITED, done.stdout
    assert len(results) == 48
