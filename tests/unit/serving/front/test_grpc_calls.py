"""Calls and streams over gRPC that are silent, cut off or nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.hostile.greedy import GreedyClient
from onetrunk.serving.front import grpc_calls, grpc_door
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.triton import TritonDownError
from tests.fixtures.doors import Doors, code_of, question, until

pytestmark = pytest.mark.hostile


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


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer"])
def test_calls_that_send_nothing_shut_nobody_out(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("onetrunk.serving.front.grpc_calls.MOST_SILENT", 10)

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


def test_health_is_watched_until_the_client_hangs_up(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_door, "WATCH_EVERY_S", 0.01)
    monkeypatch.setattr(grpc_door, "MOST_WATCHERS", 2)
    state: list[bytes | Exception] = [grpc_door.SERVING]

    async def call(gateway: Gateway, method: str, request: bytes) -> bytes:
        assert (method, request) == (grpc_door.CHECK, b"")
        if isinstance(state[0], Exception):
            raise state[0]
        return state[0]

    monkeypatch.setattr(Gateway, "call", call)

    async def test(doors: Doors) -> None:
        watch = doors.channel.unary_stream(grpc_door.WATCH)
        first = watch(b"")
        assert await first.read() == grpc_door.SERVING
        state[0] = TritonDownError()
        assert await first.read() == grpc_door.NOT_SERVING
        state[0] = grpc_door.SERVING
        assert await first.read() == grpc_door.SERVING
        state[0] = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata())
        assert await first.read() == grpc_door.SERVICE_UNKNOWN
        second, third = watch(b""), watch(b"")
        assert await second.read() == grpc_door.SERVICE_UNKNOWN
        assert await third.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        second.cancel()

        async def freed() -> bool:
            again = watch(b"")
            found = await again.code() if await again.read() is grpc.aio.EOF else None
            again.cancel()
            return found is None

        for _ in range(200):
            if await freed():
                return
        raise AssertionError("a place of a client that has hung up is not given to another one")

    run(test)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_calls_whose_answers_nobody_takes_shut_nobody_out(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(grpc_calls, "MOST_UNTAKEN", 20)
    monkeypatch.setattr(grpc_door, "MOST_UNTAKEN", 20)

    async def test(doors: Doors) -> None:
        asking = question("untaken").SerializeToString()
        greedy = [GreedyClient("127.0.0.1", doors.settings.grpc_port) for _ in range(3)]
        for _ in range(3):
            for client in greedy:
                for _ in range(10):
                    with contextlib.suppress(OSError):
                        client.call(f"/inference.GRPCInferenceService/{method}", asking)
                    await asyncio.sleep(0.01)
            assert (await doors.infer("a good one")).id == "a good one"
        closed = [client.is_closed() for client in greedy]
        assert any(closed)
        for client in greedy:
            client.close()

    run(test)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_client_that_takes_no_answer_is_hung_up_on(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(grpc_calls, "UNREAD_TIMEOUT_S", 1.0)

    async def test(doors: Doors) -> None:
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        client.call(f"/inference.GRPCInferenceService/{method}", question("untaken").SerializeToString())
        await until(lambda: doors.triton.asked == ["untaken"])
        assert not client.is_closed()
        await until(client.is_closed)
        client.close()
        assert (await doors.infer("a good one")).id == "a good one", "another connection of the same address goes on"

    run(test)


def test_answers_that_are_taken_leave_nothing_behind(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "UNREAD_TIMEOUT_S", 0.2)
    made: list[grpc_calls.UntakenAnswers] = []
    begin = grpc_calls.UntakenAnswers.__init__

    def note(answers: grpc_calls.UntakenAnswers, port: int) -> None:
        begin(answers, port)
        made.append(answers)

    monkeypatch.setattr(grpc_calls.UntakenAnswers, "__init__", note)

    async def test(doors: Doors) -> None:
        for number in range(3):
            assert (await doors.infer(str(number))).id == str(number)
        assert len([found async for found in doors.stub.ModelStreamInfer(iter([question("a"), question("b")]))]) == 2
        unknown = doors.channel.unary_unary("/inference.GRPCInferenceService/Unknown")
        assert (await code_of(unknown(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED
        cancelled = doors.stub.ModelStreamInfer(iter([question("c")]))
        await cancelled.read()
        cancelled.cancel()
        (answers,) = made
        await until(lambda: not answers._calls and not answers._waiting and answers._size == 0)
        await asyncio.sleep(0.5)
        assert (await doors.infer("later")).id == "later", "nobody was hung up on"

    run(test)


def test_endpoints_as_grpc_names_them() -> None:
    assert grpc_calls.endpoint_of("ipv4:127.0.0.1:8001") == ("127.0.0.1", 8001)
    assert grpc_calls.endpoint_of("ipv6:%5B::1%5D:443") == ("::1", 443)
    assert grpc_calls.endpoint_of("unix:/a/socket") is None


def test_the_connection_of_one_peer_is_shut_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in range(2)]
        first, second = (client.getsockname() for client in clients)
        descriptors = set(os.listdir("/proc/self/fd"))
        assert grpc_calls.shut_down({first}, port + 1) == 0, "a connection to another port"
        assert grpc_calls.shut_down({first}, port) == 1
        assert clients[0].recv(1) == b""
        accepted[1].sendall(b"a")
        assert clients[1].recv(1) == b"a", second
        assert set(os.listdir("/proc/self/fd")) == descriptors, "no copy is left open"
        for one in (*clients, *accepted):
            one.close()
