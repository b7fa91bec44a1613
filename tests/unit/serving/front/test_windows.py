"""Long texts over HTTP: every dialect gives the client's answer, and windows count as texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from onetrunk.client import Answer, Client
from onetrunk.client.readers import LabelPrediction
from onetrunk.serving.front.settings import Limits
from tests.unit.serving.front.conftest import Served

LONG = " ".join(f"word{at:06d}" for at in range(30))  # four windows of the fake
WINDOWED = {"long_texts": "windows", "window_overlap": 0.25}


@pytest.fixture
def windowed(make_served: Callable[..., Served]) -> Served:
    """A front whose limits allow six windows, before a fake whose sst2 reads windows."""
    served = make_served(limits=Limits(max_texts=6, max_body_bytes=4096))
    served.triton.tasks["sst2"].update(WINDOWED)
    return served


@pytest.fixture
def expected(windowed: Served) -> Answer:
    with Client(windowed.grpc_url) as client:
        (answer,) = client.predict([LONG], tasks=["sst2"])
    assert (answer["sst2"].windows, answer.truncated) == (4, False)
    return answer


def test_every_dialect_gives_the_clients_answer(windowed: Served, expected: Answer) -> None:
    said = expected["sst2"]
    assert isinstance(said, LabelPrediction)
    positive = pytest.approx(said.scores["positive"], abs=1e-6)
    texts = ["short", LONG]

    def ask(path: str, body: Any, **headers: str) -> Any:
        status, answer = windowed.ask("POST", path, body, **headers)
        assert status == 200, answer
        return answer

    short, long = ask("/v1/predict", {"texts": texts, "tasks": ["sst2", "cola"]})["answers"]
    assert long["predictions"]["sst2"]["windows"] == 4
    assert long["predictions"]["sst2"]["scores"]["positive"] == positive
    assert "windows" not in long["predictions"]["cola"]
    assert "windows" not in short["predictions"]["sst2"]
    assert long["truncated"], "cola is cut"

    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    kind = {"content-type": "application/x-ndjson"}
    _, content, _ = windowed.raw("POST", "/v1/predict?tasks=sst2", lines, **kind)
    last = json.loads(content.splitlines()[-1])
    assert (last["predictions"]["sst2"]["windows"], last["truncated"]) == (4, False)

    (ranked,) = ask("/predict?task=sst2", {"inputs": [[LONG]], "truncate": False})
    assert {one["label"]: one["score"] for one in ranked}["positive"] == positive
    question = {"model": "jev-latest", "state": LONG, "questions": {"sst2": {"type": "noul"}}}
    decision = ask("/v1/systemone", question)
    assert decision["answers"]["sst2"]["noul"] == positive
    assert decision["answers"]["sst2"]["x_windows"] == 4
    assert "x_truncated" not in decision


@pytest.mark.hostile
def test_windows_count_as_texts(windowed: Served, expected: Answer) -> None:
    body = {"texts": [LONG] * 3, "tasks": ["sst2"]}
    assert windowed.ask("POST", "/v1/predict", body | {"texts": [LONG] * 2})[0] == 200  # three more windows each
    status, answer = windowed.ask("POST", "/v1/predict", body)
    assert status == 413
    assert "9 more windows, and a request may have 6: send fewer" in answer["error"]


@pytest.mark.hostile
def test_the_bytes_of_windows_are_bounded(windowed: Served) -> None:
    windowed.triton.tasks["mnli"].update(WINDOWED)
    # The second text is read again beside each window.
    pair = {"texts": [LONG], "pairs": ["b" * 1000], "tasks": ["mnli"]}
    assert windowed.ask("POST", "/v1/predict", pair)[0] == 200
    status, answer = windowed.ask("POST", "/v1/predict", pair | {"pairs": ["b" * 1400]})
    assert status == 413
    assert "bytes, and a request may have 4,096: send fewer" in answer["error"]
