"""`/v1/predict` line by line: bodies that would keep the front from everybody else."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onetrunk.serving.front.api import MOST_BAD_LINES
from onetrunk.serving.front.observed import StreamedResponse
from onetrunk.serving.front.observer import Record
from onetrunk.serving.front.settings import MIB, Limits
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile

NDJSON = {"Content-Type": "application/x-ndjson"}


def test_others_are_answered_while_lines_are_read_that_ask_nothing(served: Served) -> None:
    body = b"\n" * 1_000_000
    answered = 0
    with ThreadPoolExecutor() as pool:
        lines = pool.submit(served.raw, "POST", "/v1/predict", body, **NDJSON)
        while not lines.done():
            assert served.raw("GET", "/page.css")[0] == 200
            answered += 1
    status, content, _ = lines.result()
    assert (status, content) == (200, b"")
    assert answered > 2, "one may have come before the lines, and one after"


def test_very_many_lines_that_cannot_be_used_are_not_all_told(served: Served) -> None:
    """What is said of each is a hundred times as long as the line."""
    status, content, _ = served.raw("POST", "/v1/predict", b"{}\n" * 2_000_000, **NDJSON)
    lines = content.splitlines()
    assert (status, len(lines)) == (200, MOST_BAD_LINES + 1)
    assert (
        "one of more than 10,000 that cannot be used: no more of the lines are read" in json.loads(lines[-1])["error"]
    )


def test_lines_that_only_the_tokenizer_refuses_do_not_make_all_others_be_asked_as_often(served: Served) -> None:
    served.triton.refuse = lambda row: "nothing to read" if row[0].startswith("no") else None
    texts = ["no" if number % 2 else f"a text {number}" for number in range(256)]
    body = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    status, content, _ = served.raw("POST", "/v1/predict?tasks=sst2", body, **NDJSON)
    lines = [json.loads(line) for line in content.splitlines()]
    assert (status, len(lines)) == (200, 256)
    assert ["error" in line for line in lines] == [text == "no" for text in texts]
    assert sum(len(request.rows) for request in served.triton.requests) < 256 * 16


def test_numbers_of_lines_count_blank_ones(served: Served) -> None:
    body = b"\n" * 300 + b'{"text": "a"}\n\r\n' + b"no JSON"
    status, content, _ = served.raw("POST", "/v1/predict", body, **NDJSON)
    first, second = map(json.loads, content.splitlines())
    assert (status, first["line"], second["line"]) == (200, 301, 303)
    assert "predictions" in first
    assert "error" in second


def test_a_body_of_several_members_is_read_to_its_end(served: Served) -> None:
    """As of compressed files that were joined."""
    body = b"".join(gzip.compress(b'{"text": "%d"}\n' % number) for number in range(300))
    status, content, _ = served.raw("POST", "/v1/predict", body, **NDJSON, **{"Content-Encoding": "gzip"})
    lines = [json.loads(line) for line in content.splitlines()]
    assert (status, [line["line"] for line in lines]) == (200, list(range(1, 301)))
    assert all("predictions" in line for line in lines)


def test_a_line_that_is_too_long_fails_alone(make_served: Callable[..., Served]) -> None:
    served = make_served(limits=Limits(max_text_bytes=100))
    texts = ["a" * (101 if number == 5 else 100) for number in range(8)]
    body = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    status, content, _ = served.raw("POST", "/v1/predict", body, **NDJSON)
    lines = [json.loads(line) for line in content.splitlines()]
    assert (status, [line["line"] for line in lines if "error" in line]) == (200, [6])
    assert lines[5]["error"] == "text: 101 bytes, and at most 100 are allowed: shorten it"


def test_more_lines_than_a_request_may_have_texts_are_answered(make_served: Callable[..., Served]) -> None:
    served = make_served(limits=Limits(max_texts=100))
    status, content, _ = served.raw("POST", "/v1/predict", b'{"text": "a"}\n' * 120, **NDJSON)
    lines = [json.loads(line) for line in content.splitlines()]
    assert (status, len(lines)) == (200, 120)
    assert all("predictions" in line for line in lines)


def test_lines_are_observed_until_the_last_is_sent(served: Served) -> None:
    served.triton.delay_s = 0.3
    served.raw("POST", "/v1/predict", b'{"text": "a"}\n', **NDJSON)
    metrics = served.raw("GET", "/metrics")[1].decode()
    (total,) = (
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("onetrunk_front_request_seconds_sum") and 'door="http"' in line
    )
    assert total >= 0.3


def test_a_client_that_hangs_up_is_no_fault_of_the_front() -> None:
    """By servers of ASGI 2.4, which tell it as an error of sending."""

    async def hangs_up(message: Any) -> None:
        raise OSError

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def lines() -> AsyncIterator[str]:
        yield "a line"

    response = StreamedResponse(lines())
    response.record = Record("an id")
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    asyncio.run(response(scope, receive, hangs_up))
    assert response.record.status == "499"


def test_lines_that_nobody_takes_are_counted(make_served: Callable[..., Served]) -> None:
    """Otherwise each such request would hold its body for as long as its client likes."""
    served = make_served(limits=Limits(max_pending_bytes=4 * MIB))
    host, port = served.url.removeprefix("http://").split(":")
    body = b'{"text": "a"}\n' * (MIB // 14)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: {NDJSON['Content-Type']}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    clients, answers = [], []
    for _ in range(6):
        client = socket.create_connection((host, int(port)), timeout=60)
        clients.append(client)
        client.sendall(request)
        answers.append(client.recv(12))
    assert answers[0] == b"HTTP/1.1 200"
    assert answers[-1] == b"HTTP/1.1 429"
    for client in clients:
        client.close()
