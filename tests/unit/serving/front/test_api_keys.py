"""API keys: nobody asks without one, at either door and in any protocol, and no answer tells them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from jevcompat import runner
from pydantic import SecretStr
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.admin import AdminClient
from onetrunk.client import BadInput, Client, ServerError, pipeline
from onetrunk.client.bench.load import run_own_load
from onetrunk.client.bench.samples import Sample
from onetrunk.client.cli import ask_repo, bench_repo
from onetrunk.protocol.api_key import read_api_keys
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_HEADER
from onetrunk.serving.front.endpoints import json_operations
from onetrunk.serving.front.settings import FrontSettings
from tests.fixtures.browser import browser, needs_browser
from tests.fixtures.jevcompat_tasks import NOT_SUITED, TASKS_OF_JEVCOMPAT
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile

KEYS = ("first-key-3141592653", "second-key-2718281828")
ADMIN = "the-key-of-the-admin"
WRONG = (
    {},
    {"authorization": KEYS[0]},
    {"authorization": f"Basic {KEYS[0]}"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": f"Bearer {KEYS[0]}x"},
    {"authorization": f"Bearer {KEYS[0][:-1]}"},
    {"authorization": f"Bearer {KEYS[0]} {KEYS[1]}"},
    {"authorization": "Bearer \u00e9"},
    {ADMIN_HEADER: KEYS[0]},
    {"authorization": f"Bearer {ADMIN}"},
)


@pytest.fixture
def locked(make_served: Callable[..., Served]) -> Served:
    return make_served(api_keys=tuple(map(SecretStr, KEYS)), admin_key=SecretStr(ADMIN))


@pytest.mark.parametrize("headers", WRONG, ids=[str(at) for at in range(len(WRONG))])
def test_every_path_that_asks_needs_a_key(locked: Served, headers: dict[str, str]) -> None:
    paths = [(one.method, one.path.replace("{task}", "sst2")) for one in json_operations(None)]  # type: ignore[arg-type]
    more = [
        ("GET", "/openapi.json"),
        ("GET", "/v1/deployments"),
        ("GET", "/v2"),
        ("GET", "/v2/models/multitask/config"),
    ]
    for method, path in [*paths, *more, ("POST", "/v2/models/multitask/infer"), ("POST", "/v2/logging")]:
        status, body, answered = locked.raw(method, path, {} if method == "POST" else None, **headers)
        assert status == 401, f"{method} {path}: {body!r}"
        assert answered["www-authenticate"] == "Bearer"
        for key in (*KEYS, ADMIN):
            assert key.encode() not in body
    assert locked.triton.requests == []
    assert locked.triton.config_requests <= 1, "the front's own"


def test_what_says_nothing_of_texts_and_tasks_needs_none(locked: Served) -> None:
    for path in ("/healthz", "/metrics", "/docs", "/"):
        assert locked.raw("GET", path)[0] == 200, path


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {key}"} for key in KEYS]
    + [{"authorization": f"bearer {KEYS[1]}"}, {ADMIN_HEADER: ADMIN}],
)
def test_a_key_is_enough(locked: Served, headers: dict[str, str]) -> None:
    assert locked.ask("POST", "/v1/predict", {"texts": "abc", "tasks": ["sst2"]}, **headers)[0] == 200


def test_errors_have_the_form_of_their_protocol(locked: Served) -> None:
    assert locked.ask("POST", "/v1/systemone", {})[1]["detail"]["error_type"] == "authentication_error"
    assert locked.ask("POST", "/classify", {})[1]["error"]["type"] == "UnauthorizedError"
    assert set(locked.ask("POST", "/predict", {})[1]) == {"error", "error_type"}


def test_grpc_needs_one_too(locked: Served) -> None:
    with grpc.insecure_channel(locked.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        infer = service_pb2.ModelInferRequest(model_name="multitask")
        calls: list[Callable[..., Any]] = [
            lambda **options: stub.ModelInfer(infer, **options),
            lambda **options: list(stub.ModelStreamInfer(iter([infer]), **options)),
            lambda **options: stub.ModelConfig(service_pb2.ModelConfigRequest(name="multitask"), **options),
            lambda **options: stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(), **options),
        ]
        for call in calls:
            for headers in WRONG:
                metadata = tuple((name, value) for name, value in headers.items() if value.isascii())
                with pytest.raises(grpc.RpcError) as caught:
                    call(metadata=metadata, timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert locked.triton.requests == []
        for metadata in ((("authorization", f"Bearer {KEYS[1]}"),), ((ADMIN_GRPC_HEADER, ADMIN),)):
            calls[2](metadata=metadata, timeout=60)


def test_clients_send_it(locked: Served, make_client: type[Client], tmp_path: Path) -> None:
    with make_client(locked.grpc_url, api_key=KEYS[1]) as client:
        (answer,) = client.predict("abc", tasks=["sst2"])
        assert answer["sst2"].label == "positive"
    advice = "^this server asks for a key: give one that it knows as api_key$"
    with make_client(locked.grpc_url) as client, pytest.raises(BadInput, match=advice):
        client.predict("abc", tasks=["sst2"])
    assert pipeline("text-classification", locked.url, model="sst2", api_key=KEYS[0])("abc")[0]["label"] == "positive"
    with pytest.raises(BadInput, match=advice):
        pipeline("text-classification", locked.url, model="sst2")
    file = tmp_path / "keys"
    file.write_text(f"{KEYS[0]}\n")
    file.chmod(0o600)
    command = ["abc", "--tasks", "sst2", "--url", locked.grpc_url, "--json"]
    done = CliRunner().invoke(ask_repo, [*command, "--api-key-file", str(file)])
    assert json.loads(done.stdout)["predictions"]["sst2"]["label"] == "positive"
    file.write_text("unknown\n")
    wrong = f"the key of --api-key-file {file} is not one of the server's: put one of them into its first line"
    for asks in ([ask_repo, *command], [bench_repo, "--url", locked.grpc_url]):
        for options, message in (
            ([], "this server asks for a key: give --api-key-file FILE"),
            (["--api-key-file", str(file)], wrong),
        ):
            done = CliRunner().invoke(asks[0], [*asks[1:], *options])
            assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


@needs_browser
def test_the_page_of_endpoints_takes_one(locked: Served) -> None:
    async def all_of_it() -> None:
        async with browser() as tab:
            await tab.open(f"{locked.url}/docs")
            await tab.until("!document.getElementById('key-form').hidden")
            assert await tab.texts("details") == []
            await tab.evaluate("document.getElementById('key').focus()")
            await tab.type(KEYS[0])
            await tab.press("Enter")
            await tab.until("document.querySelectorAll('details').length > 5")
            await tab.evaluate("document.querySelector('details').open = true")
            await tab.evaluate("document.querySelector('details button').click()")
            await tab.until("/^200, /.test(document.querySelector('details pre').textContent)")
            assert KEYS[0] not in await tab.evaluate("location.href + document.body.innerHTML")

    asyncio.run(asyncio.wait_for(all_of_it(), 120))


def test_a_load_of_our_own_sends_it(locked: Served) -> None:
    samples = [Sample("abc", None, (), ())]
    load = run_own_load(locked.grpc_url, "multitask", samples, 2, 0.3, api_key=KEYS[0])
    assert load.throughput == pytest.approx(len(locked.triton.requests) / 0.3, rel=0.5)
    with pytest.raises(ServerError, match="this server asks for a key"):
        run_own_load(locked.grpc_url, "multitask", samples, 2, 0.3)
    with AdminClient(locked.grpc_url, api_key=KEYS[0]) as client:
        assert client.config("multitask") is not None


def test_the_admin_key_is_enough_for_all_that_deploying_asks(locked: Served) -> None:
    with AdminClient(locked.grpc_url, ADMIN) as admin:
        assert admin.config("multitask") is not None
        assert admin.ask("multitask", [("abc", "")], ["sst2"])["sst2"].shape == (1, 2)
    with (
        AdminClient(locked.grpc_url) as nobody,
        pytest.raises(
            ServerError, match="this server asks for a key, and no key was given: give --admin-key-file FILE"
        ),
    ):
        nobody.config("multitask")


def test_jevcompat_with_a_key(locked: Served) -> None:
    locked.triton.tasks = {
        name: {**task, "metric": "accuracy", "tap": 1, "layers": 1, "version": 1}
        for name, task in TASKS_OF_JEVCOMPAT.items()
    }
    report = runner.run(locked.url, key=KEYS[0], timeout=60)
    unmet = {one.id for one in report.results if one.status != "pass"}
    assert unmet == {one for one in NOT_SUITED if not one.startswith("auth.")} | {"auth.ignored-when-off"}


@pytest.mark.parametrize("key", ["", "two words", "ü", "a\n", "x" * 5000])
def test_a_key_that_cannot_be_a_header_is_refused_by_the_client(key: str) -> None:
    with pytest.raises(BadInput, match="api_key: the API key") as caught:
        Client(api_key=key)
    assert not key or key not in str(caught.value)


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the shop\nkey-one\n\nkey-two\r\n")
    file.chmod(0o600)
    assert read_api_keys(file) == ("key-one", "key-two")
    for content, says in (
        ("# none\n", "it has 0 keys"),
        ("key-one\nkey two\n", "line 2: the API key has a blank"),
        ("k\n" * 1001, "it has 1001 keys"),
        ("key-\u00fc", "line 1: the API key has a character beyond ASCII"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=says) as caught:
            read_api_keys(file)
        assert "key-one" not in str(caught.value)
        assert "key two" not in str(caught.value)
    file.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_api_keys(file)
    with pytest.raises(UserError, match="No such file"):
        read_api_keys(tmp_path / "nothing")


def test_keys_go_through_the_pipe_and_into_no_text() -> None:
    settings = FrontSettings(
        host="127.0.0.1", http_port=1, grpc_port=2, metrics_port=3, api_keys=tuple(map(SecretStr, KEYS))
    )
    assert KEYS[0] not in repr(settings)
    assert FrontSettings.model_validate_json(settings.line()).api_keys == settings.api_keys
