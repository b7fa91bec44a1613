"""What only the async client does: cancelled calls, calls beside each other."""

from __future__ import annotations

import asyncio
import time

import pytest

from onetrunk.client import AsyncClient, OneTrunkError


def test_calls_run_beside_each_other(fake):
    fake.delay_s = 0.4

    async def main() -> None:
        async with AsyncClient(fake.url) as client:
            await client.tasks()
            answers = await asyncio.gather(*(client.predict("x" * n, "y", tasks=["stsb"]) for n in range(1, 6)))
            assert [answer["stsb"].score for (answer,) in answers] == [1.0, 2.0, 3.0, 4.0, 5.0]

    asyncio.run(main())
    assert fake.most_at_once > 1


def test_a_cancelled_call_ends_at_once_and_cancels_nothing_on_the_server(fake):
    fake.delay_s = 2.0

    async def main() -> None:
        async with AsyncClient(fake.url) as client:
            await client.tasks()
            call = asyncio.create_task(client.predict(["text"] * 100))
            await asyncio.to_thread(fake.wait_for, 4)
            began = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert time.monotonic() - began < 1.5
            assert len(fake.requests) == 4  # no more were sent
            (answer,) = await client.predict("still of use", tasks=["sst2"])
            assert answer["sst2"].label == "positive"

    asyncio.run(main())
    assert len(fake.requests) == 5
    assert not any(request.cancelled for request in fake.requests)


def test_a_timeout_of_asyncio_works(fake):
    fake.delay_s = 0.5

    async def main() -> None:
        async with AsyncClient(fake.url) as client:
            await client.tasks()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.predict("text"), timeout=0.1)

    asyncio.run(main())
    assert not any(request.cancelled for request in fake.requests)


def test_closing_ends_a_call_that_waits(fake):
    fake.delay_s = 0.2

    async def main() -> None:
        client = AsyncClient(fake.url)
        await client.tasks()
        call = asyncio.create_task(client.predict(["text"] * 100))
        await asyncio.to_thread(fake.wait_for, 4)
        await client.close()
        with pytest.raises(OneTrunkError, match="was closed"):
            await call

    asyncio.run(main())
    assert len(fake.requests) == 4
    assert not any(request.cancelled for request in fake.requests)


def test_a_client_serves_one_event_loop_after_the_other(fake):
    client = AsyncClient(fake.url)

    async def ask() -> float:
        (answer,) = await client.predict("four", "y", tasks=["stsb"])
        return answer["stsb"].score

    assert [asyncio.run(ask()), asyncio.run(ask())] == [4.0, 4.0]
    asyncio.run(client.close())
    with pytest.raises(OneTrunkError, match="closed"):
        asyncio.run(ask())
