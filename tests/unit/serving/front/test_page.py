"""The page at `/`: its files, the deployments that it shows, and in a browser what it makes of hostile answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.testclient import TestClient

from onetrunk.protocol.errors import UserError
from onetrunk.serving.front import page as page_package
from onetrunk.serving.front.admission import Admission
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.metrics import Metrics
from onetrunk.serving.front.observer import Observer
from onetrunk.serving.front.page import HEADERS, Page
from onetrunk.serving.front.page.deployments import last_deployments
from onetrunk.serving.front.service import Service
from onetrunk.serving.front.settings import FrontSettings, Limits
from onetrunk.serving.front.trials import Trials
from onetrunk.serving.front.triton import Triton
from tests.fixtures.browser import CONTROL, Browser, browser, needs_browser

FOLDER = Path(page_package.__file__).parent
HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>"


def entry(number: int, **more: Any) -> str:
    fields = {"time": f"2026-01-01T00:00:{number:02d}+00:00", "who": "ada@host", "id": "1", "action": "deploy"}
    return json.dumps({**fields, "task": f"t{number}", "from": 1, "to": 2, "result": "done", **more})


def write_log(folder: Path, *lines: str) -> Path:
    (folder / "deployments.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_last_ten_deployments_come_newest_first(tmp_path: Path) -> None:
    lines = [line for number in range(12) for line in (entry(number, result="begun"), entry(number))]
    found = last_deployments(write_log(tmp_path, *lines))
    assert [one["task"] for one in found] == [f"t{number}" for number in reversed(range(2, 12))]
    assert last_deployments(tmp_path / "nowhere") == []


def test_deployments_name_neither_users_nor_machines_nor_paths(tmp_path: Path) -> None:
    failed = entry(1, result="failed", reason="/home/ada/heads/t1: no such folder", to=None)
    (found,) = last_deployments(write_log(tmp_path, failed))
    assert found == {
        "time": "2026-01-01T00:00:01+00:00",
        "action": "deploy",
        "task": "t1",
        "from": 1,
        "to": None,
        "result": "failed",
    }


@pytest.mark.hostile
def test_a_log_that_nothing_here_wrote_does_no_harm(tmp_path: Path) -> None:
    lines = ["[" * 100_000, "x" * 200_000, "3", '"done"', entry(1, task={"a": [1]}), entry(2, to=[[]]), entry(3)]
    found = last_deployments(write_log(tmp_path, *lines, '{"cut off'))
    assert [one["task"] for one in found] == ["t3"]


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_a_log_that_is_no_file_of_the_repository_is_not_read(tmp_path: Path, kind: str) -> None:
    repository, log = tmp_path / "repository", tmp_path / "repository" / "deployments.jsonl"
    repository.mkdir()
    if kind == "fifo":
        os.mkfifo(log)
    elif kind == "link":
        log.symlink_to(write_log(tmp_path, entry(1)) / "deployments.jsonl")
    else:
        log.mkdir()
    with pytest.raises(UserError):
        last_deployments(repository)


def served(repository: Path | None) -> TestClient:
    settings = FrontSettings(host="127.0.0.1", http_port=1, grpc_port=1, metrics_port=1)
    gateway, metrics = Gateway(settings, Triton()), Metrics(Admission(Limits()))
    service = Service(gateway, Observer(metrics), Trials(gateway, metrics))
    return TestClient(Starlette(routes=[*Page(service, repository).routes()]))


def test_every_file_comes_with_the_policy(tmp_path: Path) -> None:
    client = served(None)
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    assert client.get("/v1/deployments").json() == {"deployments": None}
    assert served(tmp_path).get("/v1/deployments").json() == {"deployments": []}


def test_the_page_loads_nothing_from_elsewhere_and_makes_no_markup_of_text() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.*") if path.suffix != ".py"}
    for name in ("index.html", "page.css", "page.js"):
        addresses = set(re.findall(r"https?://[^\"' )]+", files[name]))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # a name, which nobody loads
    assert not re.search(r"\s(on\w+|style)=", files["index.html"])
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert markup not in files["page.js"]


# ---- In a browser, with a server that answers what the test says ----------------------------------------------------

TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"kind": "classification", "form": "single", "labels": ["negative", HOSTILE], "tap": 2, "layers": 1},
    "cola": {"kind": "classification", "form": "single", "labels": ["no", "yes"], "tap": 1, "layers": 3},
    "topics": {"kind": "multilabel", "form": "single", "labels": ["art", "law"], "tap": 1, "layers": 1},
    "slots": {"kind": "tagging", "form": "single", "labels": ["artist"], "tap": 1, "layers": 1},
    "stsb": {"kind": "regression", "form": "pair", "labels": None, "range": [0, 5], "tap": 3, "layers": 1},
}
TEXT = f"🎺 play nina {HOSTILE}"
PREDICTIONS = {
    "sst2": {"label": HOSTILE, "score": 0.9, "scores": {HOSTILE: 0.9, "negative": 0.1}},
    "cola": {"label": "yes", "score": 0.4, "none_of_these": True, "scores": {"yes": 0.4, "no": 0.3}},
    "topics": {"labels": [], "scores": {"art": 0.2, "law": 0.1}},
    "slots": {"spans": [{"type": HOSTILE, "text": "nina", "start": 7, "end": 11, "score": 0.8}], "words": []},
    "stsb": {"score": 2.5},
}


def statistics(runs: int) -> dict[str, Any]:
    models = [
        "multitask",
        "tokenizer",
        "trunk_00_01",
        "trunk_01_02",
        "trunk_02_03",
        *(f"head_{task}" for task in TASKS),
    ]
    spent = {"count": runs, "ns": runs * 3_000_000}
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "model_stats": [
            {"name": name, "version": "1", "inference_stats": dict.fromkeys(parts, spent)} for name in models
        ]
    }


class Pretended:
    """A server of the real page, which answers what the test says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: str | None = None
        self.truncated = False
        self.key: str | None = None
        self.deployments: list[dict[str, Any]] | None = [{"time": HOSTILE, "action": HOSTILE, "task": "sst2"}]

    async def answer(self, request: web.Request) -> web.Response:
        if (file := {"/": "index.html"}.get(request.path, request.path[1:])) in ("index.html", "page.css", "page.js"):
            kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[file.rpartition(".")[2]]
            return web.Response(body=(FOLDER / file).read_bytes(), content_type=kind, headers=HEADERS)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "this server asks for a key"}, status=401)
        if request.path == "/v1/predict":
            return await self.predict(request)
        trunk = [{"model_name": name, "output_map": {}} for name in ("trunk_00_01", "trunk_01_02", "trunk_02_03")]
        heads = [{"model_name": f"head_{task}", "output_map": {task: task}} for task in TASKS]
        found: dict[str, Any] = {
            "/v1/tasks": {
                "trunk": HOSTILE,
                "max_length": 64,
                "tasks": {name: {"name": name, "version": 7, **task} for name, task in TASKS.items()},
            },
            "/v1/deployments": {"deployments": self.deployments},
            "/v2": {"name": "triton", "version": "2.51.0"},
            "/v2/models/multitask/config": {"ensemble_scheduling": {"step": [*trunk, *heads]}},
            "/v2/models/stats": statistics(len(self.asked)),
        }
        return web.json_response(found[request.path])

    async def predict(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        if self.error is not None:
            return web.json_response({"error": self.error}, status=400)
        form = "pair" if "pairs" in asked else "single"
        names = asked.get("tasks") or [name for name, task in TASKS.items() if task["form"] == form]
        said = {name: PREDICTIONS[name] for name in names}
        answer = {"text": asked["texts"][0], "truncated": self.truncated, "ms": 1.5, "predictions": said}
        return web.json_response({"answers": [answer]})


@pytest.fixture
def shown() -> Callable[..., None]:
    """Runs a test's coroutine with the page in a browser."""

    def run(
        test: Callable[[Browser, Pretended], Awaitable[None]], *, dark: bool = False, key: str | None = None
    ) -> None:
        async def all_of_it() -> None:
            pretended = Pretended()
            pretended.key = key
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", pretended.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            try:
                async with browser() as tab:
                    await tab.open(f"http://127.0.0.1:{runner.addresses[0][1]}/", dark=dark)
                    if key is None:
                        await tab.until(f"document.querySelectorAll('#choices input').length === {len(TASKS)}")
                    await test(tab, pretended)
            finally:
                await runner.cleanup()

        asyncio.run(asyncio.wait_for(all_of_it(), 120))

    return run


async def asked_by_keyboard(tab: Browser, text: str) -> None:
    await tab.evaluate("document.getElementById('text').focus()")
    await tab.type(text)
    await tab.press("Enter", CONTROL)
    await tab.until("/answered in/.test(document.getElementById('status').textContent)")


@needs_browser
@pytest.mark.hostile
def test_text_labels_and_types_that_are_markup_stay_text(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        await asked_by_keyboard(tab, TEXT)
        assert server.asked == [{"texts": [TEXT]}]
        assert await tab.texts("[data-task=sst2] .says") == [HOSTILE]
        assert await tab.texts("[data-task=slots] mark") == [f"nina{HOSTILE}"]  # after a character of two units
        assert TEXT.replace("nina", f"nina{HOSTILE}") in await tab.texts("[data-task=slots] .text")
        assert HOSTILE in (await tab.texts("#about"))[0]
        assert HOSTILE in await tab.texts("#deployments td")
        await asyncio.sleep(0.2)  # in which an image would have failed to load
        assert await tab.evaluate(
            "window.pwned === undefined && document.querySelector('main img, main script') === null"
        )
        server.error = HOSTILE
        await tab.click("#ask")
        await tab.until("document.getElementById('status').className === 'error'")
        assert await tab.texts("#status") == [HOSTILE]
        assert not [fault for fault in tab.faults if "400" not in fault]

    shown(test)


@needs_browser
@pytest.mark.hostile
def test_the_policy_runs_no_script_that_got_into_the_page(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        await tab.evaluate("void document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"pwned=1\">')")
        await tab.evaluate(
            "void document.body.append(Object.assign(document.createElement('script'), {text: 'pwned=1'}))"
        )
        await asyncio.sleep(0.2)
        assert await tab.evaluate("window.pwned === undefined")
        assert len([fault for fault in tab.faults if "Content Security Policy" in fault]) == 2

    shown(test)


@needs_browser
def test_each_kind_of_answer_is_shown_and_what_ran(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        server.truncated = True
        await asked_by_keyboard(tab, TEXT)
        assert await tab.texts("[data-task=cola] .says") == ["none of these"]
        assert await tab.texts("[data-task=topics] .says") == ["none of these"]
        assert await tab.texts("[data-task=cola] .bars .number") == ["40.0%", "30.0%"]
        assert await tab.texts("#answers .warning") == ["The text is too long: its end was not read."]
        ran = ["tokenizer", "layer 1", "layer 2", "head sst2", "head cola", "head topics", "head slots"]
        assert await tab.texts("#picture svg > title") == [f"Ran: {', '.join(ran)}."]
        assert "12.00 ms" in await tab.texts("#picture .ran text")  # the queue and three parts of work
        assert await tab.texts("#times tbody tr:nth-child(3) td") == ["tokenizer", "1", "3.00", "9.00"]
        assert "sst27classification" in "".join(await tab.texts("#versions td"))

        # A second text and one chosen task, with the keyboard alone.
        await tab.evaluate("document.getElementById('text').focus()")
        await tab.press("Tab")
        await tab.type("another text")
        for _ in TASKS:
            await tab.press("Tab")
        await tab.press(" ")
        for _ in range(1):
            await tab.press("Tab")
        assert await tab.evaluate("document.activeElement.id") == "ask"
        await tab.press("Enter")
        await tab.until("document.querySelectorAll('[data-task]').length === 1")
        assert server.asked[-1] == {"texts": [TEXT], "pairs": ["another text"], "tasks": ["stsb"]}
        assert await tab.texts("[data-task=stsb] .says") == ["2.5"]
        assert tab.faults == []

    shown(test)


@needs_browser
def test_controls_have_names_results_are_announced_and_dark_is_dark(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        controls = [node for node in tree if node.get("role", {}).get("value") in ("textbox", "button", "checkbox")]
        assert len(controls) == 2 + 4 + len(TASKS)  # texts, Ask and the examples, tasks
        assert all(node["name"]["value"].strip() for node in controls)
        assert await tab.evaluate("document.getElementById('status').getAttribute('aria-live')") == "polite"
        dark = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        light = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark, light) == ("rgb(18, 23, 28)", "rgb(255, 255, 255)")

    shown(test, dark=True)


@needs_browser
def test_a_key_is_asked_for_once_it_is_needed_and_kept_nowhere(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        await tab.until("!document.getElementById('key-form').hidden")
        assert await tab.evaluate("document.activeElement.id") == "key"
        assert await tab.texts("#choices input") == []
        await tab.type("wrong")
        await tab.press("Enter")
        await tab.until("document.getElementById('status').className === 'error'")
        await tab.evaluate("document.getElementById('key').select()")
        await tab.type("the key")
        await tab.press("Enter")
        await tab.until(f"document.querySelectorAll('#choices input').length === {len(TASKS)}")
        assert await tab.evaluate("document.getElementById('key-form').hidden")
        assert await tab.texts("#status") == [""]
        await asked_by_keyboard(tab, "a text")
        assert server.asked == [{"texts": ["a text"]}]
        kept = "location.href + document.cookie + JSON.stringify([localStorage, sessionStorage])"
        assert "the key" not in (await tab.evaluate(kept)).replace("%20", " ")
        assert await tab.evaluate("document.getElementById('key').value") == ""

    shown(test, key="the key")


@needs_browser
def test_without_keys_no_key_is_asked_for(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, server: Pretended) -> None:
        assert await tab.evaluate("getComputedStyle(document.getElementById('key-form')).display") == "none"

    shown(test)


@needs_browser
def test_a_task_needs_its_limb_and_the_segments_below_its_tap(shown: Callable[..., None]) -> None:
    """Two segments of the trunk may start with token ids: tap 0, and the layers above it."""

    async def test(tab: Browser, pretended: Pretended) -> None:
        names = ["trunk_00_00", "trunk_00_01", "limb_pairs_0123456789ab_01_02", "trunk_01_03"]
        steps = json.dumps([{"model_name": name} for name in names])
        found = "readParts({ensemble_scheduling: {step: %s}}).segments.filter((one) => needs(%s, one))"
        script = f"{found}.map((one) => one.model)"
        for task, below in [
            ({"tap": 0}, names[:1]),
            ({"tap": 1}, names[1:2]),
            ({"tap": 3}, [names[1], names[3]]),
            ({"tap": 2, "limb": "pairs-1+1@0123456789ab"}, names[1:3]),
            ({"tap": 2, "limb": "pairs-1+1@ba9876543210"}, names[1:2]),
        ]:
            assert await tab.evaluate(script % (steps, json.dumps(task))) == below

    shown(test)


@needs_browser
def test_a_group_that_holds_a_limb_stands_for_it(shown: Callable[..., None]) -> None:
    async def test(tab: Browser, pretended: Pretended) -> None:
        group, limb = "heads_pairs_0123456789ab_02", "limb_pairs_0123456789ab_01_02"
        outputs = {"output_map": {"mnli": "mnli"}}
        script = "readParts({ensemble_scheduling: {step: %s}}).segments.map((one) => [one.model, one.start, one.stop])"
        for steps, found in [
            ([{"model_name": group, "input_map": {"hidden_01": "hidden_01"}, **outputs}], [[group, 1, 2]]),
            ([{"model_name": group, "input_map": {"hidden_state": "hidden_pairs"}, **outputs}], []),
            ([{"model_name": limb}, {"model_name": group, "input_map": {"hidden_01": "x"}, **outputs}], [[limb, 1, 2]]),
            ([{"model_name": "heads_02", "input_map": {"hidden_state": "hidden_02"}, **outputs}], []),
        ]:
            assert await tab.evaluate(script % json.dumps(steps)) == found

    shown(test)
