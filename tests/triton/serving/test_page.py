"""The page at `/` in a browser, before a real Triton."""

from __future__ import annotations

import asyncio

from onetrunk.serving import Server
from tests.fixtures.browser import CONTROL, browser, needs_browser


@needs_browser
def test_a_text_is_typed_and_every_task_that_fits_answers(server: Server) -> None:
    async def all_of_it() -> None:
        async with browser() as tab:
            await tab.open(f"http://{server.http_url}/")
            await tab.until("document.querySelectorAll('#choices input').length === 3")
            assert await tab.texts("#deployments p") == ["Nothing was deployed since this repository was built."]
            await tab.click("#text")
            await tab.type("a good day")
            await tab.press("Enter", CONTROL)
            await tab.until("document.querySelectorAll('[data-task]').length === 2")
            assert {"negative", "positive"} & set(await tab.texts("[data-task=mood] .says"))
            ran = (await tab.texts("#picture svg > title"))[0]
            assert ran.startswith("Ran: tokenizer, ")
            assert ran.endswith("head mood, head topic.")
            parts = set(await tab.texts("#times tbody td:first-child"))
            assert {"tokenizer", "head_mood", "head_topic"} <= parts
            assert "head_match" not in parts
            await tab.press("Tab")
            await tab.type("a bad day")
            await tab.press("Enter", CONTROL)
            await tab.until("document.querySelectorAll('[data-task=match]').length === 1")
            assert tab.faults == []

    asyncio.run(asyncio.wait_for(all_of_it(), 120))
