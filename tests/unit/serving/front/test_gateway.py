"""The way to Triton: what the front reads again and again goes on, whatever happens once."""

from __future__ import annotations

import asyncio

import pytest

from onetrunk.serving.front import gateway as gateway_module
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.settings import FrontSettings
from onetrunk.serving.front.triton import Triton


def test_the_tasks_are_read_again_after_any_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway_module, "CATALOGUE_AGE_S", 0.0)

    async def read() -> None:
        gateway = Gateway(FrontSettings(host="127.0.0.1", http_port=1, grpc_port=2, metrics_port=3), Triton())
        tries, again = 0, asyncio.Event()

        async def catalogue(*, fresh: bool) -> None:
            nonlocal tries
            assert fresh, "what was read just before would be the second ten seconds"
            tries += 1
            if tries == 1:
                raise OverflowError("a fault of our own")
            again.set()

        monkeypatch.setattr(gateway, "catalogue", catalogue)
        reading = asyncio.create_task(gateway.remember_tasks())
        await asyncio.wait_for(again.wait(), 60)
        assert not reading.done()
        reading.cancel()

    asyncio.run(read())
    assert "a fault of our own" in caplog.text
