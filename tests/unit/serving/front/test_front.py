"""The front with a Triton that is none: what reaches it, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web
from pydantic import SecretStr
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_HEADER
from onetrunk.serving.front.process import Front
from onetrunk.serving.front.settings import FrontSettings, Limits, TritonAddress
from onetrunk.serving.front.triton import Triton

pytestmark = pytest.mark.hostile

KEY = "the key of the admin"
LIMITS = Limits(max_body_bytes=4096, max_texts=4, max_text_bytes=64, max_in_flight=2, max_waiting=1, body_timeout_s=0.5)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers when it is let, and counts what it is asked and what is cancelled."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = 0
        self.free = asyncio.Event()
        self.free.set()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.asked.append(request.id)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        self.asked.append(f"load {request.model_name}")
        return service_pb2.RepositoryModelLoadResponse()

    async def over_http(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append(f"{request.method} {request.path} {len(body)}")
        return web.json_response({"path": request.path})


class Doors:
    """A running front with a fake Triton behind it."""

    def __init__(self, settings: FrontSettings, triton: FakeTriton, http: aiohttp.ClientSession, channel: Any) -> None:
        self.settings = settings
        self.triton = triton
        self.http = http
        self.url = f"http://127.0.0.1:{settings.http_port}"
        self.channel = channel
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def infer(self, name: str = "", texts: tuple[bytes, ...] = (b"a text",), **options: Any) -> Any:
        return self.stub.ModelInfer(question(name, texts), **options)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.json()


def question(name: str = "", texts: tuple[bytes, ...] = (b"a text",), column: str = "text") -> Any:
    request = service_pb2.ModelInferRequest(model_name="multitask", id=name)
    request.inputs.add(name=column, datatype="BYTES", shape=(len(texts), 1))
    request.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
    return request


def bytes_input(data: str) -> bytes:
    return f'{{"inputs": [{{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": {data}}}]}}'.encode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def doors(folder: Path, limits: Limits = LIMITS) -> AsyncIterator[Doors]:
    address = TritonAddress(folder=folder)
    fake = FakeTriton()
    behind = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, behind)
    behind.add_insecure_port(address.grpc)
    await behind.start()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.over_http)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(address.http_socket)).start()
    settings = FrontSettings(
        host="127.0.0.1",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        admin_key=SecretStr(KEY),
        limits=limits,
    )
    front = Front(settings, Triton(address))
    await front.open()
    try:
        async with (
            aiohttp.ClientSession() as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
        ):
            yield Doors(settings, fake, http, channel)
    finally:
        fake.free.set()
        await front.close()
        await behind.stop(None)
        await runner.cleanup()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a test's coroutine with open doors."""

    def run_with_doors(test: Callable[[Doors], Awaitable[None]], limits: Limits = LIMITS) -> None:
        async def all_of_it() -> None:
            async with doors(tmp_path, limits) as opened:
                await test(opened)

        asyncio.run(asyncio.wait_for(all_of_it(), 60))

    return run_with_doors


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to this")


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


def test_a_cancellation_never_reaches_triton_and_keeps_its_turn(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        doors.triton.free.clear()
        for name in ("first", "second"):
            code, _ = await code_of(doors.infer(name, timeout=0.2))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        # Both turns are taken by requests that nobody waits for, so the third waits, and gives its place away.
        code, _ = await code_of(doors.infer("third", timeout=0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        fourth = asyncio.ensure_future(doors.infer("fourth"))
        await asyncio.sleep(0.1)
        doors.triton.free.set()
        assert (await fourth).id == "fourth"
        assert doors.triton.asked == ["first", "second", "fourth"]
        assert doors.triton.cancelled == 0

    run(test)


def test_what_is_too_much_is_refused_with_the_reason(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        doors.triton.free.clear()
        waiting = [asyncio.ensure_future(doors.infer(str(n))) for n in range(3)]
        await until(lambda: len(doors.triton.asked) == 2)
        await asyncio.sleep(0.1)
        code, message = await code_of(doors.infer("one too many"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 are in flight and 1 wait" in message
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}
        async with doors.http.post(f"{doors.url}/v2/models/multitask/infer", json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        doors.triton.free.set()
        assert [(await call).id for call in waiting] == ["0", "1", "2"]

    run(test)


def test_sizes_are_bounded_over_grpc(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        code, message = await code_of(doors.infer(texts=(b"short", b"x" * 65)))
        assert (code, message.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "text 1")
        code, message = await code_of(doors.infer(texts=(b"a",) * 5))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "5 rows" in message
        code, _ = await code_of(doors.infer(texts=(b"x" * 5000,)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        code, _ = await code_of(doors.infer(texts=(b"x" * 5_000_000,), compression=grpc.Compression.Gzip))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await doors.infer(compression=grpc.Compression.Gzip)).model_name == "multitask"
        assert len(doors.triton.asked) == 1

    run(test)


def test_a_message_of_many_tiny_parts_is_refused_before_it_is_parsed(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        ask = doors.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for bomb in (b"\x2a\x00" * 200_000, b"\x3a\x00" * 200_000, b"\x22\x00" * 200_000):
            code, message = await code_of(ask(bomb))
            assert (code, message) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "the request has more than 4,096 inputs, outputs and parameters",
            )
        for broken in (b"\xff" * 20, b"\x2a\xff", b"\x0b", b"\x2a\x7f"):
            code, message = await code_of(ask(broken))
            assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, "the request is not a ModelInferRequest")
        assert doors.triton.asked == []

    run(test, Limits(max_body_bytes=1 << 20))


def test_bodies_are_bounded_over_http(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        path = "/v2/models/multitask/infer"
        bomb = gzip.compress(b"0" * 10_000_000)
        sent = [
            (b"x" * 5000, {}, 413, "4,096"),
            (bomb, {"Content-Encoding": "gzip"}, 413, "decompression"),
            (gzip.compress(b"a text")[:20], {"Content-Encoding": "gzip"}, 400, "ends too early"),
            (b"plain", {"Content-Encoding": "gzip"}, 400, "not in gzip"),
            (b"{}", {"Content-Encoding": "br"}, 400, "unknown"),
            (b"{}", {"Inference-Header-Content-Length": "9"}, 400, "2 bytes"),
            (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "number of bytes"),
            (b"[" * 4000, {}, 400, "not JSON"),
            (b"\xff\xfe", {}, 400, "not JSON"),
            (b"[]", {}, 400, "no list of inputs"),
            (b'{"inputs": [1]}', {}, 400, "no list of inputs"),
            (b'{"inputs": [{"name": "text", "shape": [1, NaN]}]}', {}, 400, "NaN is no JSON"),
            (b'{"inputs": [{"name": "text", "shape": [-1, 1]}]}', {}, 400, "shape must be a list"),
            (b'{"inputs": [{"name": "text", "shape": "1"}]}', {}, 400, "shape must be a list"),
            (b'{"inputs": [], "inputs": [{"name": "text"}]}', {}, 400, "a key is in one object twice"),
            (bytes_input("[7]"), {}, 400, "text 0: a text must be a string, and this is 7"),
            (bytes_input('[["a"], [null]]'), {}, 400, "text 1: a text must be a string, and this is null"),
            (bytes_input('["\\ud800"]'), {}, 400, "text 0: half of a surrogate pair at character 0"),
        ]
        for body, headers, status, part in sent:
            found, answer = await doors.post(path, body, **headers)
            assert (found, part in answer["error"]) == (status, True), (body[:20], headers, answer)
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()
        texts = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "ü" * 33]}]}
        assert (await doors.post(path, texts))[1]["error"].startswith("text 1: 66 bytes")
        binary = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1]}]}
        binary["inputs"][0]["parameters"] = {"binary_data_size": 104}
        head = json.dumps(binary).encode()
        body = head + (100).to_bytes(4, "little") + b"y" * 100
        found, answer = await doors.post(path, body, **{"Inference-Header-Content-Length": str(len(head))})
        assert (found, answer["error"].partition(":")[0]) == (413, "text 0")
        assert doors.triton.asked == []

    run(test)


def test_odd_requests_get_a_message_that_helps(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        code, message = await code_of(doors.stub.ModelInfer(question(column="text_pair")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message == "text_pair without text: send the first text of each pair as text"

    run(test)


def test_what_changes_triton_asks_for_the_key_at_both_doors(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        load = service_pb2.RepositoryModelLoadRequest(model_name="evil")
        for metadata in ((), ((ADMIN_GRPC_HEADER, "wrong"),), ((ADMIN_GRPC_HEADER, KEY + "x"),)):
            code, message = await code_of(doors.stub.RepositoryModelLoad(load, metadata=metadata))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert KEY not in message
        paths = [
            "/v2/repository/models/evil/load",
            "/v2/repository/index",
            "/v2/systemsharedmemory/region/x/register",
            "/v2/logging",
            "/v2/trace/setting",
            "/v2/models/multitask/trace/setting",
        ]
        for path in paths:
            assert (await doors.post(path, {}))[0] == 403
            assert (await doors.post(path, {}, **{ADMIN_HEADER: "wrong"}))[0] == 403
        assert doors.triton.asked == []
        await doors.stub.RepositoryModelLoad(load, metadata=((ADMIN_GRPC_HEADER, KEY),))
        assert (await doors.post(paths[0], {}, **{ADMIN_HEADER: KEY}))[0] == 200
        assert doors.triton.asked == ["load evil", f"POST {paths[0]} 2"]

    run(test)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/a/../../repository/index",
        "/v2//repository/index",
        "/v2/models/x/generate",
        "/v2/unknown",
        "/v1/unknown",
        "/page",
    ],
)
def test_other_paths_lead_nowhere(run: Callable[..., None], path: str) -> None:
    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
        for method in ("GET", "POST", "DELETE"):
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.split()[1] in ("404", "403"), head
            length = next(line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length"))
            await reader.readexactly(int(length))
        writer.close()
        assert doors.triton.asked == []

    run(test)


def test_a_stream_is_answered_in_order_and_never_opened_to_triton(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        requests = [question("0"), question("1", texts=(b"x" * 65,)), question("2")]
        found = [
            (answer.infer_response.id, answer.error_message.partition(":")[0])
            async for answer in doors.stub.ModelStreamInfer(iter(requests))
        ]
        assert found == [("0", ""), ("1", "text 0"), ("2", "")]
        doors.triton.free.clear()
        stream = doors.stub.ModelStreamInfer(iter([question("3")]))
        await until(lambda: doors.triton.asked[-1] == "3")
        stream.cancel()
        await asyncio.sleep(0.2)
        assert doors.triton.cancelled == 0

    run(test)


def test_without_triton_it_says_so_and_comes_back(run: Callable[..., None], tmp_path: Path) -> None:
    async def test(doors: Doors) -> None:
        doors.triton.free.clear()
        held = asyncio.ensure_future(doors.infer("held"))
        await until(lambda: doors.triton.asked == ["held"])
        doors.triton.free.set()
        assert (await held).id == "held"

    run(test)

    async def nobody_behind() -> None:
        settings = FrontSettings(
            host="127.0.0.1", http_port=free_port(), grpc_port=free_port(), metrics_port=free_port()
        )
        front = Front(settings, Triton())
        await front.open()
        async with (
            aiohttp.ClientSession() as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
        ):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            code, message = await code_of(stub.ModelInfer(question()))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "not running at the moment" in message
            for path, status in (("/healthz", 503), ("/v2/health/ready", 503), ("/metrics", 200)):
                async with http.get(f"http://127.0.0.1:{settings.http_port}{path}") as response:
                    assert response.status == status
        await front.close()

    asyncio.run(nobody_behind())


def test_a_connection_that_sends_nothing_is_closed(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.HEAD_TIMEOUT_S", 0.2)

    async def test(doors: Doors) -> None:
        for sent in (b"", b"GET / HT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 5) == b""
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
                    await asyncio.wait_for(writer.drain(), 5)
                await asyncio.wait_for(reader.read(), 5)
                raise AssertionError("it was still read")
            writer.close()
        assert await doors.infer("a good one")

    run(test)


def test_a_refused_body_holds_its_connection_for_a_while_only(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.HEAD_TIMEOUT_S", 0.3)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port)
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")  # which ends the time for the next head, and is none
        await asyncio.wait_for(reader.read(), 5)
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
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200") == 1
        writer.close()

    run(test)


@pytest.mark.parametrize("bound", ["UNREAD_TIMEOUT_S", "MAX_UNREAD_BYTES"])
def test_an_answer_that_nobody_takes_is_dropped(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(f"onetrunk.serving.front.connection.{bound}", 0.3 if bound == "UNREAD_TIMEOUT_S" else 1 << 20)

    async def large(self: FakeTriton, request: web.Request) -> web.Response:
        return web.Response(body=bytes(8 << 20))

    monkeypatch.setattr(FakeTriton, "over_http", large)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port, limit=1024)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(1)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.wait_for(reader.read(1 << 20), 5):
                got += len(part)
        assert got < 8 << 20
        writer.close()

    run(test)


def test_an_answer_that_is_taken_slowly_comes_whole(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.serving.front.connection.UNREAD_TIMEOUT_S", 0.3)

    async def large(self: FakeTriton, request: web.Request) -> web.Response:
        return web.Response(body=bytes(8 << 20))

    monkeypatch.setattr(FakeTriton, "over_http", large)

    async def test(doors: Doors) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.settings.http_port, limit=1024)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, got = await reader.readuntil(b"\r\n\r\n"), 0
        assert b" 200 " in head
        while part := await asyncio.wait_for(reader.read(1 << 20), 5):
            got += len(part)
            await asyncio.sleep(0.005)
        assert got == 8 << 20
        writer.close()

    run(test)


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer"])
def test_calls_that_send_nothing_shut_nobody_out(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("onetrunk.serving.front.grpc_door.MOST_SILENT", 10)

    async def test(doors: Doors) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            silent = [channel.stream_stream(f"/inference.GRPCInferenceService/{method}")() for _ in range(100)]
            await until(lambda: sum(call.done() for call in silent) == 90)
            assert {await call.code() for call in silent if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert (await doors.infer("a good one")).id == "a good one"
            for call in silent:
                call.cancel()

    run(test)


def test_a_call_whose_request_does_not_come_is_ended(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            assert (await code_of(call()))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
            assert (await code_of(call(iter(()))))[0] == grpc.StatusCode.INVALID_ARGUMENT

    run(test)


def test_a_stream_with_nonsense_goes_on(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            sent = [b"\xff\xff", question("a good one").SerializeToString()]
            found = [service_pb2.ModelStreamInferResponse.FromString(answer) async for answer in call(iter(sent))]
            assert "not a ModelInferRequest" in found[0].error_message
            assert found[1].infer_response.id == "a good one"

    run(test)


def test_a_stream_that_is_cancelled_is_no_failure_of_the_server(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        doors.triton.free.clear()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
                iter([question("one").SerializeToString()])
            )
            waiting = asyncio.ensure_future(call.read())
            await until(lambda: doors.triton.asked == ["one"])
            call.cancel()
            await asyncio.wait([waiting])
            found = ""
            for _ in range(100):
                async with doors.http.get(f"{doors.url}/metrics") as response:
                    found = await response.text()
                if 'status="499"' in found:
                    break
                await asyncio.sleep(0.02)
        assert 'onetrunk_front_requests_total{door="grpc",status="499"} 1.0' in found
        assert 'status="500"' not in found
        assert doors.triton.cancelled == 0

    run(test)
