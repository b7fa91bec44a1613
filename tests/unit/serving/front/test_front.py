"""What reaches Triton through the front, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_HEADER
from onetrunk.serving.front.process import Front
from onetrunk.serving.front.settings import FrontSettings
from onetrunk.serving.front.triton import Triton
from tests.fixtures.doors import KEY, Doors, code_of, question, until
from tests.fixtures.ports import free_ports
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile


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


def test_without_triton_it_says_so_and_comes_back(run: Callable[..., None], tmp_path: Path) -> None:
    async def test(doors: Doors) -> None:
        doors.triton.free.clear()
        held = asyncio.ensure_future(doors.infer("held"))
        await until(lambda: doors.triton.asked == ["held"])
        doors.triton.free.set()
        assert (await held).id == "held"

    run(test)

    async def nobody_behind() -> None:
        settings = FrontSettings(host="127.0.0.1", **free_ports())
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


def test_both_doors_know_the_tasks_from_one_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrunk.client.core.CATALOGUE_AGE_S", 60.0)
    assert served.ask("GET", "/v1/tasks")[0] == 200
    read = served.triton.config_requests
    infer = question()
    infer.outputs.add(name="sst2").parameters["classification"].int64_param = 1
    with grpc.insecure_channel(served.grpc_url) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer, timeout=60)
    for _ in range(3):
        assert served.ask("POST", "/v1/predict", {"texts": "abc", "tasks": ["sst2"]})[0] == 200
    assert len(served.triton.requests) == 4
    assert served.triton.config_requests == read
