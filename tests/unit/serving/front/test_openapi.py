"""The OpenAPI document: it is one, its examples run, and the answers are what it says."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from onetrunk.serving.front.endpoints import json_operations
from tests.unit.serving.front.conftest import Served


def calls(document: dict[str, Any]) -> list[tuple[str, str, Any, dict[str, Any]]]:
    """Method, path, body and schema of the answer of all examples, and of what needs no body."""
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
            examples = operation["requestBody"]["content"]["application/json"]["examples"]
            assert examples, f"{method} {path} has no example"
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
def test_its_page_loads_nothing_and_writes_no_html(served: Served) -> None:
    status, page, headers = served.raw("GET", "/docs")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    text = page.decode()
    assert text == resources.files("onetrunk.serving.front").joinpath("docs.html").read_text("utf-8")
    for bad in ("http:", "https:", "src=", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
        assert bad not in text
