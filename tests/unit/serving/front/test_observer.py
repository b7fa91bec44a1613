"""What is kept of a request: its id, its line of log, and its trace."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from onetrunk.client.tracing import trace_context, trace_headers
from onetrunk.serving.front.admission import Admission
from onetrunk.serving.front.metrics import HTTP, Metrics
from onetrunk.serving.front.observer import JsonLines, Observer
from onetrunk.serving.front.parts import OWN, TRITON, TURN, part
from onetrunk.serving.front.settings import Limits, Tracing
from tests.unit.serving.front.conftest import Served

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Returns the lines of JSON that were logged so far."""
    caplog.set_level(logging.INFO)
    return lambda: [json.loads(JsonLines().format(record)) for record in caplog.records]


def observer(**options: Any) -> Observer:
    return Observer(Metrics(Admission(Limits())), **options)


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1", True), ("", False), ("a b", False), ("x" * 129, False), ('"\n{}', False)]
)
def test_a_request_keeps_its_id_or_gets_one(given: str, kept: bool) -> None:
    with observer().request(HTTP, "GET /", {"x-request-id": given} if given else {}) as record:
        pass
    assert (record.request_id == given) is kept
    assert len(record.request_id) == (len(given) if kept else 32)


def test_only_what_the_server_failed_is_logged_and_never_without_bounds(lines: Any) -> None:
    watching = observer()
    for status in ("ok", "400", "404", "429", "499", "INVALID_ARGUMENT", "503"):
        with watching.request(HTTP, "POST /v1/predict", {"x-request-id": status}) as record:
            record.status, record.reason = status, "a reason\nof two lines"
    (line,) = lines()
    assert {key: line[key] for key in ("level", "request_id", "door", "request", "status", "reason")} == {
        "level": "ERROR",
        "request_id": "503",
        "door": "http",
        "request": "POST /v1/predict",
        "status": "503",
        "reason": "a reason\nof two lines",
    }
    for _ in range(200):
        with watching.request(HTTP, "POST /v1/predict", {}) as record:
            record.status = "503"
    assert len(lines()) == 50


def test_verbose_logs_every_request(lines: Any) -> None:
    with observer(verbose=True).request(HTTP, "GET /v1/tasks", {"traceparent": PARENT}):
        pass
    assert [(line["status"], line["traceparent"]) for line in lines()] == [("ok", PARENT)]


def test_the_parts_of_a_request_are_told_and_what_is_left_is_the_fronts_own() -> None:
    watching = observer()

    async def answer() -> None:
        with part(TURN):
            await asyncio.sleep(0.02)
        with part(TRITON):
            await asyncio.create_task(in_a_task())
        await asyncio.sleep(0.03)

    async def in_a_task() -> None:
        await asyncio.sleep(0.1)

    async def all_of_it() -> None:
        with watching.request(HTTP, "POST /v1/predict", {}):
            await asyncio.create_task(answer())
        with part(TURN):  # of no request
            pass
        with watching.request(HTTP, "GET /healthz", {}):
            pass

    asyncio.run(all_of_it())
    text = watching.metrics.text().decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if "front_part_seconds_" in line and line[0] != "#")
    counts = {name: float(found[f'onetrunk_front_part_seconds_count{{part="{name}"}}']) for name in (TURN, TRITON, OWN)}
    sums = {name: float(found[f'onetrunk_front_part_seconds_sum{{part="{name}"}}']) for name in (TURN, TRITON, OWN)}
    assert counts == {TURN: 1, TRITON: 1, OWN: 1}
    assert 0.02 <= sums[TURN] < 0.1 <= sums[TRITON]
    assert sums[OWN] >= 0.03
    (whole,) = [line for line in text.splitlines() if line.startswith("onetrunk_front_request_seconds_sum")]
    assert sum(sums.values()) == pytest.approx(float(whole.rsplit(" ", 1)[1]), abs=0.01)


def test_the_parts_of_a_request_are_not_told_if_triton_did_not_end_it() -> None:
    watching = observer()

    async def on_triton() -> None:
        with part(TURN):
            pass
        with part(TRITON):
            await asyncio.sleep(0.05)

    async def all_of_it() -> None:
        with watching.request(HTTP, "POST /v1/predict", {}) as record, part(TURN):
            record.status = "429"
        with watching.request(HTTP, "POST /v1/predict", {}) as record:
            going_on = asyncio.create_task(on_triton())
            await asyncio.sleep(0)
            record.status = "499"  # its client hangs up
        await going_on
        with watching.request(HTTP, "POST /v1/predict", {}):
            await on_triton()  # some of its texts
            going_on = asyncio.create_task(on_triton())
            await asyncio.sleep(0)
        await going_on

    asyncio.run(all_of_it())
    assert "front_part_seconds_sum{" not in watching.metrics.text().decode()


def test_an_error_that_nobody_expected_is_a_failure(lines: Any) -> None:
    with pytest.raises(ZeroDivisionError), observer().request(HTTP, "GET /", {}):
        raise ZeroDivisionError
    assert [(line["status"], line["reason"]) for line in lines()] == [("500", "ZeroDivisionError")]


def test_a_trace_goes_on_through_the_client_and_a_span_takes_its_place() -> None:
    with observer().request(HTTP, "GET /", {"traceparent": PARENT, "cookie": "x"}) as record:
        assert record.trace == {"traceparent": PARENT}
        assert trace_headers() == (("traceparent", PARENT),)
    assert trace_headers() == ()
    ended = []
    tracer = SimpleNamespace(
        start=lambda name, headers: SimpleNamespace(
            headers={"traceparent": "child of " + headers["traceparent"]}, end=lambda *how: ended.append(how)
        )
    )
    with observer(tracer=tracer).request(HTTP, "GET /", {"traceparent": PARENT, "x-request-id": "r"}):
        assert trace_headers() == (("traceparent", f"child of {PARENT}"),)
    assert ended == [("ok", "r")]


def test_contexts_nest() -> None:
    with trace_context({"traceparent": "outer"}):
        with trace_context({}):
            assert trace_headers() == ()
        assert trace_headers() == (("traceparent", "outer"),)


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://x/", "http:///v1", "http://a b/"])
def test_an_endpoint_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Tracing(url=url)


def test_each_task_counts_the_texts_that_it_answered_and_each_label_that_holds(served: Served) -> None:
    served.triton.tasks["topic"] = {
        **{"kind": "multilabel", "form": "single", "labels": ["a", "b"], "thresholds": [0.99, 0.99]},
        **{"metric": "micro_f1", "tap": 1, "layers": 1, "version": 1},
    }
    body = {"texts": ["abc", "abc", "abc"], "pairs": [None, None, "a"]}
    while "topic" not in served.ask("GET", "/v1/tasks")[1]["tasks"]:
        pass
    assert served.ask("POST", "/v1/predict", body)[0] == 200
    assert served.ask("POST", "/v1/predict", {"texts": [" "]})[0] == 400
    url = f"http://127.0.0.1:{served.metrics_port}/metrics"
    text = urllib.request.urlopen(url, timeout=60).read().decode()
    assert 'onetrunk_task_texts_total{task="mnli"} 1.0' in text
    assert 'onetrunk_task_texts_total{task="sst2"} 2.0' in text
    assert 'onetrunk_task_requests_total{outcome="client",task="sst2"} 1.0' in text
    assert 'onetrunk_task_requests_total{outcome="client",task="mnli"}' not in text
    assert 'onetrunk_task_labels_total{label="(none of these)",task="topic"} 2.0' in text
    assert 'label="b",task="topic"' not in text
