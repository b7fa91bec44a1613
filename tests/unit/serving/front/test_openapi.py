"""The OpenAPI document: it is one, its examples run, and the answers are what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from onetrunk.serving.front.endpoints import json_operations
from onetrunk.serving.front.page import HEADERS
from tests.fixtures.browser import browser, needs_browser
from tests.fixtures.fake_triton import EMBEDDING, TASKS
from tests.unit.serving.front.conftest import Served


@pytest.fixture(autouse=True)
def embedding(served: Served) -> None:
    served.triton.tasks["embedding"] = dict(EMBEDDING)


def calls(document: dict[str, Any], without: Collection[str] = ()) -> list[tuple[str, str, Any, dict[str, Any]]]:
    """Method, path, body and schema of the answer of all examples, and of what needs no body.

    Endpoints without an example, because no task that is served suits them, must be named.
    """
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            parameters = operation.get("parameters", [])
            for one in parameters:
                if one["in"] == "path":
                    path = path.replace(f"{{{one['name']}}}", one["example"])
            if "requestBody" not in operation:
                found.append((method.upper(), path, None, schema))
                continue
            examples = operation["requestBody"]["content"]["application/json"].get("examples", {})
            assert bool(examples) != (path in without), f"{method} {path}: {len(examples)} examples"
            found += [(method.upper(), one["summary"], one["value"], schema) for one in examples.values()]
    return found


def test_its_examples_run_and_the_answers_are_what_it_says(served: Served) -> None:
    status, document = served.ask("GET", "/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    asked = calls(document)
    assert len(asked) > len(document["paths"])
    for method, path, body, schema in asked:
        status, answer = served.ask(method, path, body)
        assert status == 200, f"{method} {path}: {answer}"
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer)


def test_its_schemas_are_valid_and_described(served: Served) -> None:
    _, document = served.ask("GET", "/openapi.json")
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], name
        assert "Attributes:" not in schema["description"]
        for field, value in schema.get("properties", {}).items():
            assert value.get("description"), f"{name}.{field}"


def test_errors_are_what_it_says(served: Served) -> None:
    _, document = served.ask("GET", "/openapi.json")
    for operation in json_operations(None):  # type: ignore[arg-type]  # the handlers are not called
        if operation.request is None:
            continue
        path = operation.path.replace("{task}", "sst2")
        described = document["paths"][operation.path]["post"]["responses"]["4XX"]["content"]["application/json"]
        for wrong in (b"{", b"[]", b"{}"):
            status, answer = served.ask("POST", path, wrong)
            assert 400 <= status < 500, f"{path} {wrong!r}: {answer}"
            TypeAdapter(operation.error).validate_python(answer)
            schema = {**described["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer)


def test_without_tasks_it_has_no_examples(served: Served) -> None:
    served.triton.tasks = {}
    _, document = served.ask("GET", "/openapi.json")
    assert "examples" not in document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]


@pytest.mark.hostile
@needs_browser
def test_its_page_shows_every_endpoint_and_sends_examples(served: Served) -> None:
    served.triton.tasks["mood"] = {**TASKS["sst2"], "labels": ["<img src=x onerror='window.pwned=1'>", "fine"]}
    served.triton.tasks = {"mood": served.triton.tasks["mood"], **served.triton.tasks}

    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"{served.url}/docs")
            await tab.until("document.querySelectorAll('details').length > 0")
            shown = await tab.texts("summary code")
            assert {"POST /v1/predict", "POST /v1/systemone", "GET /v1/models/{task}"} <= set(shown)
            assert len(shown) == sum(map(len, served.ask("GET", "/openapi.json")[1]["paths"].values()))
            await tab.evaluate("document.querySelector('details').open = true")
            await tab.click("details button")
            await tab.until("/^200, /.test(document.querySelector('details pre').textContent)")
            (answer, *_) = await tab.texts("details pre")
            assert "onerror" in answer, "as text"
            assert await tab.evaluate("window.pwned === undefined && document.images.length === 0")
            assert tab.faults == []

    asyncio.run(asyncio.wait_for(look(), 120))


def test_its_page_has_the_policy_of_pages(served: Served) -> None:
    for path in ("/docs", "/docs.css", "/docs.js"):
        status, _, headers = served.raw("GET", path)
        assert status == 200
        assert headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
