"""The JSON endpoints before a real Triton: the examples of the OpenAPI document, and jevcompat's requirements."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import BadInput, Client, pipeline
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
    asked = calls(document, without={"/embed", "/v1/embeddings"})
    assert {path for _, path, body, _ in asked if body} >= {"/v1/predict", "/classify", "/v1/systemone"}
    for method, path, body, schema in asked:
        answer = ask(url, method, path, body)
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer)


@pytest.mark.hostile
def test_a_server_with_keys_answers_those_who_have_one(handmade_repository: Path) -> None:
    with Server(
        handmade_repository, http_port=0, grpc_port=0, metrics_port=0, api_keys=["key-1", "key-2"], admin_key="admin"
    ) as server:
        url = f"http://{server.http_url}"
        with Client(server.grpc_url, api_key="key-2") as client:
            assert client.predict("a good day", tasks=["mood"])[0]["mood"].label in ("negative", "positive")
        with Client(server.grpc_url) as nobody, pytest.raises(BadInput, match="this server asks for a key"):
            nobody.predict("a good day")
        with AdminClient(server.grpc_url, "admin") as admin:
            assert "multitask" in admin.loaded_versions()
            assert admin.ask("multitask", [("a good day", "")], ["mood"])["mood"].shape == (1, 2)
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(url, "POST", "/v1/predict", {"texts": "a good day"})
        assert caught.value.code == 401
        classify = pipeline("text-classification", url, model="mood", api_key="key-1")
        assert set(classify("a good day")[0]) == {"label", "score"}


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
