"""Requests to paths that exist, by another method or with parameters that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.serving.front.conftest import Served

NDJSON = {"Content-Type": "application/x-ndjson"}
LINE = b'{"text": "a"}\n'
NOT_IN_JSON = "tasks: this parameter is for a body in NDJSON; give tasks as a field of the body"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/predict", "POST"),
        ("HEAD", "/v1/predict", "POST"),
        ("OPTIONS", "/v1/predict", "POST"),
        ("GET", "/v1/embeddings", "POST"),
        ("GET", "/v1/models/sst2:predict", "POST"),
        ("POST", "/v1/models/sst2", "GET, HEAD"),
        ("DELETE", "/v1/tasks", "GET, HEAD"),
        ("POST", "/v1/deployments", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_one_a_path_takes(served: Served, method: str, path: str, allowed: str) -> None:
    status, content, headers = served.raw(method, path)
    assert (status, headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert f"{method} {path}: this path takes another method; send {allowed[:4].strip(',')}" in content.decode()


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/models/sst2:explain", "/v2/unknown", "/v2/models/m/infer"])
def test_a_path_that_no_method_leads_to_is_not_found(served: Served, path: str) -> None:
    for method in ("DELETE", "PATCH"):
        status, content, headers = served.raw(method, path)
        assert (status, headers["Allow"]) == (404, None)
        assert b"there is nothing here" in content


@pytest.mark.parametrize(
    ("path", "body", "headers", "line"),
    [
        ("/v1/predict?task=sst2&top=1", LINE, NDJSON, "task: no such parameter (did you mean tasks?); allowed: tasks"),
        ("/v1/predict?tasks=sst2&top=1", LINE, NDJSON, "top: no such parameter; allowed: tasks"),
        ("/v1/predict?tasks=sst2&tasks=cola", LINE, NDJSON, "tasks: the parameter is given 2 times; give it once"),
        ("/v1/predict?tasks=sst2", {"texts": "a"}, {}, NOT_IN_JSON),
        ("/predict?tasks=sst2", {"inputs": "a"}, {}, "tasks: no such parameter (did you mean task?); allowed: task"),
        ("/embed?model=sst2", {"inputs": "a"}, {}, "model: no such parameter; allowed: task"),
        (f"/predict?{'x' * 200}%0A=1", {"inputs": "a"}, {}, f"{'x' * 40}...: no such parameter; allowed: task"),
        ("/predict?a%0Ab=1", {"inputs": "a"}, {}, "a\\nb: no such parameter; allowed: task"),
    ],
)
def test_a_parameter_that_nobody_reads_is_refused(
    served: Served, path: str, body: Any, headers: dict[str, str], line: str
) -> None:
    status, answer = served.ask("POST", path, body, **headers)
    assert (status, answer["error"]) == (422, line)
    assert served.triton.requests == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/sst2:predict?api-version=1", {"instances": ["a"]}),
        ("/classify?api-version=1", {"model": "sst2", "input": "a"}),
        ("/v1/predict", {"texts": "a"}),
        ("/predict?task=sst2", {"inputs": "a"}),
    ],
)
def test_endpoints_that_read_no_parameters_take_any(served: Served, path: str, body: Any) -> None:
    assert served.ask("POST", path, body)[0] == 200
