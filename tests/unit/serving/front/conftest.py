"""A front that answers JSON, before a Triton that is none."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onetrunk.serving.front.process import Front
from onetrunk.serving.front.settings import FrontSettings, Limits, TritonAddress
from onetrunk.serving.front.triton import Triton
from tests.fixtures.doors import LIMITS, Doors, doors
from tests.fixtures.fake_triton import FakeTriton
from tests.fixtures.ports import free_ports


class Served:
    """A front in a thread of its own.

    Attributes:
        triton: the fake behind it.
        url: where it listens for HTTP.
        grpc_url: where it listens for gRPC.
    """

    def __init__(self, triton: FakeTriton, settings: FrontSettings) -> None:
        self.triton = triton
        self.url = f"http://127.0.0.1:{settings.http_port}"
        self.grpc_url = f"127.0.0.1:{settings.grpc_port}"
        self.metrics_port = settings.metrics_port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        status, content, _ = self.raw(method, path, body, **headers)
        return status, json.loads(content)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
        """The status, the body and the headers of an answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@pytest.fixture
def make_served(
    tmp_path: Path, start_fake: Callable[..., FakeTriton], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    """Starts a front before a fake Triton, with the settings given. It asks for the tasks again before each use."""
    monkeypatch.setattr("onetrunk.client.core.CATALOGUE_AGE_S", 0.0)
    ends: list[Callable[[], None]] = []

    def make(**options: Any) -> Served:
        address = TritonAddress(folder=tmp_path)
        fake = start_fake(url=address.grpc)
        settings = FrontSettings(host="127.0.0.1", **free_ports(), **options)
        loop, opened, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            front = Front(settings, Triton(address))
            await front.open()
            opened.set()
            await over.wait()
            await front.close()

        def run() -> None:
            try:
                loop.run_until_complete(serve())
            finally:
                opened.set()

        thread = threading.Thread(target=run)
        thread.start()

        def end() -> None:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()

        ends.append(end)
        assert opened.wait(60)
        assert loop.is_running(), "the front did not open"
        return Served(fake, settings)

    yield make
    for end in ends:
        end()


@pytest.fixture
def served(make_served: Callable[..., Served]) -> Served:
    """A front before a fake Triton, whose tasks a test may change before it asks."""
    return make_served()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a test's coroutine with open doors."""

    def run_with_doors(test: Callable[[Doors], Awaitable[None]], limits: Limits = LIMITS) -> None:
        async def all_of_it() -> None:
            async with doors(tmp_path, limits) as opened:
                await test(opened)

        asyncio.run(asyncio.wait_for(all_of_it(), 60))

    return run_with_doors
