"""The head of an HTTP request is bounded in size and time, on a connection's first request and on every other."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile

GET = b"GET /nothing HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(params=["first request", "second request"])
def connection(request: pytest.FixtureRequest, served: Served) -> Iterator[socket.socket]:
    """A connection to the front, on which nothing or one request was sent before."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=60)) as connected:
        if request.param == "second request":
            connected.sendall(GET + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connected.recv(4096)
        yield connected


def sent_until_cut_off(connection: socket.socket, piece: bytes, most: int, pause_s: float = 0.0) -> tuple[int, bytes]:
    """Send a piece again and again; return how many bytes were taken, and what came back."""
    sent = 0
    connection.setblocking(True)
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
            time.sleep(pause_s)
    except OSError:
        pass
    try:
        return sent, connection.recv(4096)
    except OSError:
        return sent, b""


@pytest.mark.parametrize("start", [b"GET /", GET + b"X: "], ids=["target", "header"])
def test_an_endless_head_is_cut_off(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    sent, answer = sent_until_cut_off(connection, b"a" * 65536, 64 << 20)
    # The kernel's buffers take some of it before the front has read any.
    assert sent < 32 << 20
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_headers_without_end_are_cut_off(connection: socket.socket) -> None:
    connection.sendall(GET)
    sent, _ = sent_until_cut_off(connection, b"X: 1\r\n" * 10_000, 64 << 20)
    assert sent < 32 << 20


def test_a_slow_head_is_cut_off(connection: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.HEAD_TIMEOUT_S", 0.5)
    connection.sendall(b"G")
    assert connection.recv(4096) == b""


def test_a_large_head_is_read(served: Served) -> None:
    assert served.raw("GET", "/nothing", **{"X-Large": "a" * 30_000})[0] == 404
