"""Connections over HTTP that send or take too little."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest
from aiohttp import web

from onetrunk.client import Client
from onetrunk.serving.front.settings import Limits
from tests.fixtures.doors import Doors, StandIn
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile


def test_a_connection_that_sends_nothing_is_closed(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.HEAD_TIMEOUT_S", 0.2)

    async def test(doors: Doors) -> None:
        for sent in (b"", b"GET / HT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()

    run(test)


def test_trailers_are_bounded_and_not_kept(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        for trailer in (b"a: b\r\n", b"b"):  # many, or one that never ends
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
            writer.write(head + trailer)
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    writer.write(trailer * 4096)
                    await asyncio.wait_for(writer.drain(), 60)
                await asyncio.wait_for(reader.read(), 60)
                raise AssertionError("it was still read")
            writer.close()
        assert await doors.infer("a good one")

    run(test)


def test_a_refused_body_holds_its_connection_for_a_while_only(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.HEAD_TIMEOUT_S", 1.0)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")  # which ends the time for the next head, and is none
        await asyncio.wait_for(reader.read(), 60)
        writer.close()

    run(test)


def test_a_refused_body_is_not_rewritten(run: Callable[..., None]) -> None:
    """If it became longer, its end would be taken for the next request."""

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
        body = b"\r\nUpgrade: h2c" * 100
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert b" 404 " in await reader.readuntil(b"there is nothing here")
        writer.write(body)
        await asyncio.sleep(0.2)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200") == 1
        writer.close()

    run(test)


@pytest.mark.parametrize("bound", ["UNREAD_TIMEOUT_S", "MAX_UNREAD_BYTES"])
def test_an_answer_that_nobody_takes_is_dropped(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(f"onetrunk.serving.front.connection.{bound}", 0.3 if bound == "UNREAD_TIMEOUT_S" else 1 << 20)

    async def large(self: StandIn, request: web.Request) -> web.Response:
        return web.Response(body=bytes(8 << 20))

    monkeypatch.setattr(StandIn, "over_http", large)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port, limit=1024)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(1)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.wait_for(reader.read(1 << 20), 60):
                got += len(part)
        assert got < 8 << 20
        writer.close()

    run(test)


def test_an_answer_that_is_taken_slowly_comes_whole(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.UNREAD_TIMEOUT_S", 0.3)

    async def large(self: StandIn, request: web.Request) -> web.Response:
        return web.Response(body=bytes(8 << 20))

    monkeypatch.setattr(StandIn, "over_http", large)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port, limit=1024)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, got = await reader.readuntil(b"\r\n\r\n"), 0
        assert b" 200 " in head
        while part := await asyncio.wait_for(reader.read(1 << 20), 60):
            got += len(part)
            await asyncio.sleep(0.005)
        assert got == 8 << 20
        writer.close()

    run(test)


def test_silent_connections_keep_nobody_out(make_served: Callable[..., Served]) -> None:
    served = make_served(limits=Limits(max_connections=8))
    host, port = served.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=60) for _ in range(20)]
    for _ in range(3):
        assert served.raw("GET", "/page.css")[0] == 200
    assert served.ask("POST", "/v1/predict", {"texts": ["a"], "tasks": ["sst2"]})[0] == 200
    for client in silent:
        client.close()


def test_connections_for_grpc_are_bounded_too(make_served: Callable[..., Served]) -> None:
    """Otherwise they would take all of the process's open files, and so those of HTTP."""
    served = make_served(limits=Limits(max_connections=8))
    host, port = served.grpc_url.split(":")
    many = [socket.create_connection((host, int(port)), timeout=60) for _ in range(40)]
    ended = 0
    for client in many:
        with contextlib.suppress(OSError):
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    for client in many:
        try:
            ended += client.recv(1) == b""
        except OSError:
            ended += 1
        client.close()
    assert ended > 20  # of the others, one or two may be ended before they are seen
    assert served.raw("GET", "/page.css")[0] == 200
    with Client(served.grpc_url) as client:
        assert client.predict("abc", tasks=["sst2"])
