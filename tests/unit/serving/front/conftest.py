"""A front that answers JSON, before a Triton that is none."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onetrunk.serving.front.process import Front
from onetrunk.serving.front.settings import FrontSettings, TritonAddress
from onetrunk.serving.front.triton import Triton
from tests.fixtures.fake_triton import FakeTriton
from tests.unit.serving.front.test_front import free_port


class Served:
    """A front in a thread of its own.

    Attributes:
        triton: the fake behind it.
        url: where it listens for HTTP.
    """

    def __init__(self, triton: FakeTriton, url: str) -> None:
        self.triton = triton
        self.url = url

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        status, content, _ = self.raw(method, path, body, **headers)
        return status, json.loads(content)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
        """The status, the body and the headers of an answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@pytest.fixture
def served(tmp_path: Path, start_fake: Callable[..., FakeTriton]) -> Iterator[Served]:
    """A front before a fake Triton, whose tasks a test may change before it asks."""
    address = TritonAddress(folder=tmp_path)
    fake = start_fake(url=address.grpc)
    settings = FrontSettings(host="127.0.0.1", http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())
    loop, opened, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        front = Front(settings, Triton(address))
        await front.open()
        opened.set()
        await over.wait()
        await front.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert opened.wait(20)
    yield Served(fake, f"http://127.0.0.1:{settings.http_port}")
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()
