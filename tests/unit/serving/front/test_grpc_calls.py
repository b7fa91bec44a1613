"""Calls and streams over gRPC that are silent, cut off or nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.hostile.greedy import GreedyClient
from onetrunk.serving.front import grpc_calls, grpc_door
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.settings import Limits
from onetrunk.serving.front.triton import TritonDownError
from tests.fixtures.doors import LIMITS, Doors, code_of, question, until

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


def bounds(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    for name, value in values.items():
        for module in (grpc_calls, grpc_door):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer"])
def test_calls_that_send_nothing_shut_nobody_out(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bounds(monkeypatch, MOST_SILENT=10, MOMENT_S=2.0)

    async def test(doors: Doors) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            silent = [channel.stream_stream(f"/inference.GRPCInferenceService/{method}")() for _ in range(100)]
            assert (await doors.infer("a good one")).id == "a good one"
            assert not any(call.done() for call in silent), "as many may come at a time"
            await asyncio.sleep(2.1)
            assert (await doors.infer("a good one")).id == "a good one"
            await until(lambda: sum(call.done() for call in silent) >= 90)
            assert {await call.code() for call in silent if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for call in silent:
                call.cancel()

    run(test, LIMITS.model_copy(update={"body_timeout_s": 60.0}))


def test_more_silent_calls_than_may_be_open_are_ended_while_nobody_else_asks(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where as many are open as may be, gRPC refuses all others before this code sees them."""
    bounds(monkeypatch, MOST_SILENT=10, MOST_UNTAKEN=20, MOMENT_S=0.3)

    async def test(doors: Doors) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.settings.grpc_port}") as channel:
            silent = [channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")() for _ in range(200)]
            await until(lambda: sum(call.done() for call in silent) == 190)
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


LARGE = 60_000


@pytest.fixture
def large_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with the id "large" have answers of so many bytes."""
    send = grpc_door.GrpcDoor._send

    async def enlarge(door: grpc_door.GrpcDoor, record: Any, request: bytes) -> bytes:
        answer = service_pb2.ModelInferResponse.FromString(await send(door, record, request))
        if answer.id == "large":
            answer.raw_output_contents.append(b"a" * LARGE)
        return answer.SerializeToString()

    monkeypatch.setattr(grpc_door.GrpcDoor, "_send", enlarge)


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The clients that were hung up on, each time."""
    found: list[set[str]] = []
    hang_up = grpc_calls.UntakenAnswers._hang_up

    def note(answers: grpc_calls.UntakenAnswers, peers: set[str]) -> None:
        found.append(peers)
        hang_up(answers, peers)

    monkeypatch.setattr(grpc_calls.UntakenAnswers, "_hang_up", note)
    return found


METHODS = pytest.mark.parametrize("method", [f"/inference.GRPCInferenceService/Model{x}Infer" for x in ("", "Stream")])


@METHODS
def test_calls_whose_answers_nobody_takes_shut_nobody_out(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bounds(monkeypatch, MOST_UNTAKEN=20, MOST_SILENT=10, MOMENT_S=0.3)

    async def test(doors: Doors) -> None:
        asking = question("untaken").SerializeToString()
        greedy = [GreedyClient("127.0.0.1", doors.settings.grpc_port) for _ in range(3)]
        for _ in range(50):  # of all calls, 97 may be open
            for client in greedy:
                with contextlib.suppress(OSError):
                    client.call(method, asking)
            await asyncio.sleep(0.002)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await doors.infer("a good one")).id == "a good one"
                    break
                await asyncio.sleep(0.05)
        await until(lambda: any(client.is_closed() for client in greedy))
        for client in greedy:
            client.close()

    run(test)


def test_calls_that_wait_for_their_clients_take_no_place_of_others(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch, MOST_UNTAKEN=80)

    async def test(doors: Doors) -> None:
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        for number in range(75):
            client.call("/inference.GRPCInferenceService/ModelInfer", question(str(number)).SerializeToString())
            await until(lambda: len(doors.triton.asked) > number)  # noqa: B023
        assert (await doors.infer("a good one")).id == "a good one"
        client.close()

    run(test)


@METHODS
def test_a_client_that_takes_no_answer_is_hung_up_on(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, large_answers: None, method: str
) -> None:
    bounds(monkeypatch, UNREAD_TIMEOUT_S=0.5, MOMENT_S=0.1)

    async def test(doors: Doors) -> None:
        assert (await doors.infer("large")).id == "large"
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        client.call(method, question("untaken").SerializeToString())
        await until(lambda: doors.triton.asked == ["large", "untaken"])
        assert not client.is_closed()
        await until(client.is_closed)
        client.close()
        assert (await doors.infer("a good one")).id == "a good one", "another connection of the same address goes on"

    run(test)


@METHODS
def test_a_client_that_takes_an_answer_slowly_gets_all_of_it(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, large_answers: None, method: str
) -> None:
    bounds(monkeypatch, UNREAD_TIMEOUT_S=0.5, MOMENT_S=0.1, LEAST_READ_BYTES=2_000)

    async def test(doors: Doors) -> None:
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        client.call(method, question("large").SerializeToString())
        for _ in range(20):  # two seconds for the half of it
            client.take(LARGE // 40)
            await asyncio.sleep(0.1)
            assert not client.is_closed()
        await until(client.is_closed)
        client.close()

    run(test)


def test_a_client_that_takes_other_answers_may_let_one_wait(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, hung_up: list[set[str]]
) -> None:
    """As behind a proxy, which has calls of many users on one connection."""
    bounds(monkeypatch, UNREAD_TIMEOUT_S=0.5, MOMENT_S=0.1)

    async def test(doors: Doors) -> None:
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        client.call("/inference.GRPCInferenceService/ModelInfer", question("untaken").SerializeToString())
        for _ in range(15):
            client.call("/inference.GRPCInferenceService/ModelInfer", question("taken").SerializeToString())
            client.take(100_000)
            await asyncio.sleep(0.1)
            assert not client.is_closed()
        assert hung_up == []
        client.close()

    run(test)


@pytest.mark.parametrize(("method", "requests"), [("ModelInfer", 1), ("ModelStreamInfer", 2)])
def test_the_bytes_of_answers_that_nobody_takes_are_bounded(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, large_answers: None, method: str, requests: int
) -> None:
    """A stream's answers count from when they are known, not from when they are sent."""
    most = LARGE * requests + LARGE // 2
    bounds(monkeypatch, MAX_UNTAKEN_BYTES=most, MOMENT_S=2.5)

    async def test(doors: Doors) -> None:
        client = GreedyClient("127.0.0.1", doors.settings.grpc_port)
        asking = question("large").SerializeToString()
        client.call(f"/inference.GRPCInferenceService/{method}", *[asking] * requests)
        await until(lambda: len(doors.triton.asked) == requests)
        code, message = await code_of(doors.infer("large"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the answers that wait for their clients hold" in message
        refused = [answer async for answer in doors.stub.ModelStreamInfer(iter([question("large")]))]
        assert "the answers that wait for their clients hold" in refused[0].error_message
        assert (await doors.infer("a small one")).id == "a small one"
        await until(client.is_closed)
        assert (await doors.infer("large")).id == "large"
        client.close()

    run(test)


def test_one_answer_may_be_larger_than_all_together(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, large_answers: None
) -> None:
    bounds(monkeypatch, MAX_UNTAKEN_BYTES=1000)

    async def test(doors: Doors) -> None:
        assert (await doors.infer("large")).id == "large"

    run(test)


class FakeCall:
    """A call of a client of that name."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: Callable[..., None]) -> None:
        pass


def test_only_those_that_wait_for_longer_than_a_moment_count_and_the_greediest_goes(
    monkeypatch: pytest.MonkeyPatch, hung_up: list[set[str]]
) -> None:
    bounds(monkeypatch, MOST_UNTAKEN=10)

    async def test() -> None:
        answers = grpc_calls.UntakenAnswers(1)
        for peer, number in (("ipv4:127.0.0.1:1", 4), ("ipv4:127.0.0.1:2", 9)):
            for call in [FakeCall(peer) for _ in range(number)]:
                answers.watch(call)
                answers.add(call)
        answers._look()
        assert hung_up == []
        for waiting in answers._calls.values():
            waiting.since -= grpc_calls.MOMENT_S
        answers._look()
        assert hung_up == [{"ipv4:127.0.0.1:2"}]

    asyncio.run(test())


def test_answers_that_are_taken_leave_nothing_behind(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, hung_up: list[set[str]]
) -> None:
    bounds(monkeypatch, UNREAD_TIMEOUT_S=1.0, MOMENT_S=0.1)
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
        # A stream that is cancelled while Triton works for it has its answer when it is over.
        doors.triton.free.clear()
        left = doors.stub.ModelStreamInfer(iter([question("d"), question("e")]))
        await until(lambda: doors.triton.asked[-1] == "e")
        left.cancel()
        await asyncio.sleep(0.1)
        doors.triton.free.set()
        await asyncio.sleep(0.1)
        (answers,) = made
        await until(lambda: not answers._calls and not answers._readers and answers._size == 0)
        open_stream = doors.stub.ModelStreamInfer()
        await open_stream.write(question("f"))
        await open_stream.read()
        await asyncio.sleep(1.5)  # a stream that waits for its client's next request lets no answer wait
        assert hung_up == []
        await open_stream.done_writing()

    run(test)


def test_endpoints_as_grpc_names_them() -> None:
    assert grpc_calls.endpoint_of("ipv4:127.0.0.1:8001") == ("127.0.0.1", 8001)
    assert grpc_calls.endpoint_of("ipv6:%5B::1%5D:443") == ("::1", 443)
    assert grpc_calls.endpoint_of("ipv6:%5Bfe80::1%254%5D:443") == ("fe80::1", 443)
    assert grpc_calls.endpoint_of("unix:/a/socket") is None


def test_the_sockets_of_one_peer_are_found_and_no_copy_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in range(2)]
        descriptors = set(os.listdir("/proc/self/fd"))
        first = f"ipv4:127.0.0.1:{clients[0].getsockname()[1]}"
        assert list(grpc_calls._connections([first], port + 1)) == [], "a connection to another port"
        for peer, found in grpc_calls._connections([first], port):
            assert peer == first
            found.shutdown(socket.SHUT_RDWR)
        assert clients[0].recv(1) == b""
        accepted[1].sendall(b"a")
        assert clients[1].recv(1) == b"a"
        assert set(os.listdir("/proc/self/fd")) == descriptors
        for one in (*clients, *accepted):
            one.close()


def test_an_id_that_is_an_answer_of_its_own_is_refused(run: Callable[..., None]) -> None:
    async def test(doors: Doors) -> None:
        code, message = await code_of(doors.infer("a" * 4097))
        assert (code, message) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "the id has 4,097 characters, and at most 4,096 are allowed: shorten it",
        )
        (refused,) = [one async for one in doors.stub.ModelStreamInfer(iter([question("a" * 4097)]))]
        assert "the id has 4,097 characters" in refused.error_message
        assert refused.infer_response.id == ""
        status, answer = await doors.post("/v2/models/multitask/infer", b'{"id": "%s", "inputs": []}' % (b"a" * 4097))
        assert status == 413
        assert "the id has 4,097 characters" in answer["error"]

    run(test, Limits(max_body_bytes=16384))
