"""What is too much, at either door, and that a request that nobody waits for keeps its turn."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Callable
from urllib.parse import urlsplit

import grpc
import pytest

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.body import _Inflate
from onetrunk.serving.front.dialects.kserve_v1 import Instance
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.questions import read_json
from onetrunk.serving.front.settings import Limits
from tests.fixtures.doors import Doors, bytes_input, code_of, question, until
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile


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
        assert "2 are in flight and 1 waits;" in message
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


def test_each_process_of_a_front_can_hold_the_largest_body() -> None:
    limits = Limits(max_body_bytes=100 << 20)
    assert limits.shared_by(1).max_pending_bytes == 256 << 20
    assert limits.shared_by(4).max_pending_bytes == 200 << 20
    assert Limits(max_body_bytes=1 << 20).shared_by(4).max_pending_bytes == 64 << 20


def test_a_body_of_very_many_members_is_refused() -> None:
    inflate = _Inflate("gzip", 4096)
    assert inflate.decompress(gzip.compress(b"a") * 900) == b"a" * 900
    with pytest.raises(zlib.error, match="something comes after its end"):
        inflate.decompress(gzip.compress(b"") * 101)


def test_bodies_are_bounded_over_http(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        path = "/v2/models/multitask/infer"
        bomb = gzip.compress(b"0" * 10_000_000)
        sent = [
            (b"x" * 5000, {}, 413, "4,096"),
            (bomb, {"Content-Encoding": "gzip"}, 413, "decompression"),
            (gzip.compress(b"a text")[:20], {"Content-Encoding": "gzip"}, 400, "ends too early"),
            (b"plain", {"Content-Encoding": "gzip"}, 400, "not in gzip"),
            (gzip.compress(b"{") + b"no gzip", {"Content-Encoding": "gzip"}, 400, "not in gzip"),
            (zlib.compress(b"{") * 2, {"Content-Encoding": "deflate"}, 400, "something comes after its end"),
            (gzip.compress(b"x" * 4000) * 2, {"Content-Encoding": "gzip"}, 413, "decompression"),
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


VERY_MANY = b",".join([b'""'] * 300_000)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/sst2:predict", b'{"instances": [%b]}'),
        ("/v1/predict", b'{"texts": [%b]}'),
        ("/v1/predict", b'{"texts": ["a"], "tasks": [%b]}'),
        ("/classify", b'{"model": "sst2", "input": [%b]}'),
        ("/v1/classify", b'{"model": "sst2", "input": [%b]}'),
        ("/predict?task=sst2", b'{"inputs": [["a"],["a"],[%b]]}'),
        ("/v1/systemone", b'{"model": "sst2", "state": [%b], "questions": {"a": {"type": "noul"}}}'),
    ],
)
def test_very_many_texts_are_refused_before_they_are_made_into_objects(
    served: Served, path: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instance, "__init__", lambda *_, **__: 1 / 0)
    status, content, _ = served.raw("POST", path, body % VERY_MANY)
    assert status in (400, 413, 422)
    assert len(content) < 2000


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (json.dumps({"inputs": [{"name": "text"}], "outputs": [{}] * 5000}), "it has more than 4,096 objects"),
        (json.dumps({"inputs": [], "x": [[]] * 40_000}), "the body has more than 32,768 lists and objects"),
        ('{"inputs": [{"name": "text", "shape": [1, 1]}], "outputs": [{}]}', "one of the outputs has no name"),
        ('{"inputs": [{"shape": [1, 1]}]}', "one of the inputs has no name"),
    ],
)
def test_what_is_asked_over_v2_has_names(body: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        read_json("multitask", body.encode(), None, Limits())


def test_texts_are_counted_in_bytes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    infer = Gateway.infer
    monkeypatch.setattr(Gateway, "infer", lambda self, size, send: (sizes.append(size), infer(self, size, send))[1])
    assert served.ask("POST", "/v1/predict", {"texts": ["\u4e00\u4e01"], "pairs": ["ab"], "tasks": ["mnli"]})[0] == 200
    assert sizes[0] == 8


@pytest.mark.parametrize("size", ["0" * 5000 + "27", "9" * 5000])
def test_a_size_of_very_many_digits(served: Served, size: str) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        client.sendall(head.encode() + b'{"texts": "a", "tasks": []}')
        status = int(client.recv(100).split()[1])
    assert status < 500


def test_the_name_of_an_unknown_task_is_not_repeated_at_any_length(served: Served) -> None:
    status, found = served.ask("POST", "/v1/predict", {"texts": "a", "tasks": ["x" * 1_000_000]})
    assert status == 404
    assert len(found["error"]) < 300


def test_brackets_in_texts_are_no_lists(served: Served) -> None:
    text = '[{"' * 20_000
    assert served.ask("POST", "/v1/predict", {"texts": [text], "tasks": ["sst2"]})[0] == 200
    status, found = served.ask("POST", "/v1/predict", {"texts": [["[{"]] * 40_000})
    assert (status, found["error"]) == (413, "the body has more than 32,768 lists and objects: send fewer at a time")
