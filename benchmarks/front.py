"""What the front costs, and what its collecting gains, beside Triton's own gRPC endpoint in one run.

    python -m benchmarks.front model_repository --output docs/results/front

Both ways end at the same Triton, in turn, a few seconds each. Processor time is that of front and Triton, without the
clients. It needs an idle machine for the throughputs; ratios of processor time depend less on what else runs.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import click
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2_grpc

from benchmarks.compare.texts import texts_of_length
from benchmarks.summary_file import set_figures
from onetrunk.admin import AdminClient
from onetrunk.client.bench.perf_analyzer import find_perf_analyzer, run_load
from onetrunk.client.bench.samples import Sample
from onetrunk.client.wire import bytes_tensor, request_message
from onetrunk.machine import processor_name, usable_cores
from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.names import MULTITASK, TEXT
from onetrunk.serving import Server

TOKENS, CONCURRENCY, AT_ONCE = 32, 8, 64


def processor_s(*pids: int | None) -> float:
    """Return the processor time of processes and their children, in seconds."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def measure_pass_through(server: Server, texts: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Ask Triton itself and through the front in turn, with perf_analyzer; return throughputs, latencies and times."""
    samples = [Sample(text, None, (), ()) for text in texts]
    found: dict[str, list[dict[str, float]]] = {"triton": [], "front": []}
    with find_perf_analyzer() as program, AdminClient(server.triton_url) as admin:
        for _ in range(rounds):
            for name, url in (("triton", server.triton_url), ("front", server.grpc_url)):
                began_s, began = processor_s(server.pid, server.front_pid), answered(admin)
                load = run_load(program, url, MULTITASK, samples, CONCURRENCY, seconds)
                used_s = processor_s(server.pid, server.front_pid) - began_s
                found[name].append(
                    {
                        "texts_per_s": load.throughput,
                        "p50_ms": load.p50_ms,
                        "p99_ms": load.p99_ms,
                        "processor_ms": used_s / (answered(admin) - began) * 1000,
                    }
                )
    return {name: middle(rounds_of) for name, rounds_of in found.items()}


def answered(admin: AdminClient) -> int:
    """Return how many requests the ensemble has answered."""
    return sum(int(version.inference_stats.success.count) for version in admin.statistics(MULTITASK))


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


async def _all(send: Callable[[str], Awaitable[None]], texts: list[str]) -> float:
    """Send each text in a request of its own, so many at once; return the seconds."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> None:
        async with free:
            await send(text)

    began = time.perf_counter()
    await asyncio.gather(*(one(text) for text in texts))
    return time.perf_counter() - began


async def measure_singles(server: Server, texts: list[str], rounds: int) -> dict[str, Any]:
    """Send single texts at the same time, to Triton itself and to the front's JSON endpoint, in turn."""
    tasks = sorted(name for name, task in server.tasks.items() if task.form == "single")
    found: dict[str, list[dict[str, float]]] = {"triton": [], "front": []}
    url = f"http://{server.http_url}/v1/predict"
    connections = aiohttp.TCPConnector(limit=AT_ONCE)
    async with (
        grpc.aio.insecure_channel(server.triton_url) as channel,
        aiohttp.ClientSession(connector=connections) as http,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def ask_triton(text: str) -> None:
            await stub.ModelInfer(request_message(MULTITASK, [bytes_tensor(TEXT, [text.encode()])], tasks))

        async def ask_front(text: str) -> None:
            async with http.post(url, json={"texts": text, "tasks": tasks, "top": 1}) as response:
                assert response.status == 200, await response.text()
                await response.read()

        for number in range(rounds + 1):
            for name, send in (("triton", ask_triton), ("front", ask_front)):
                began = processor_s(server.pid, server.front_pid)
                seconds = await _all(send, texts)
                used = processor_s(server.pid, server.front_pid) - began
                if number:  # the first round opens the connections
                    found[name].append({"texts_per_s": len(texts) / seconds, "processor_ms": used / len(texts) * 1000})
    return {name: middle(rounds_of) for name, rounds_of in found.items()}


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path), default=Path("model_repository"))
@click.option("--output", type=click.Path(path_type=Path), help="Folder whose summary.json gets the ratios.")
@click.option("--seconds", default=5.0, help="Seconds of one measurement.")
@click.option("--rounds", default=5, help="Measurements of each way; the median counts.")
def main(repository: Path, output: Path | None, seconds: float, rounds: int) -> None:
    """Measure the front of a server that this starts."""
    texts = texts_of_length(load_trunk(), TOKENS)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        passed = measure_pass_through(server, texts, seconds, rounds)
        singles = asyncio.run(measure_singles(server, (texts * AT_ONCE)[: AT_ONCE * 8], rounds))
    summary = {
        "throughput_vs_grpc": passed["front"]["texts_per_s"] / passed["triton"]["texts_per_s"],
        "processor_vs_grpc": passed["front"]["processor_ms"] / passed["triton"]["processor_ms"],
        "p99_added_ms": passed["front"]["p99_ms"] - passed["triton"]["p99_ms"],
        "singles_vs_triton": singles["front"]["texts_per_s"] / singles["triton"]["texts_per_s"],
        "singles_processor_vs_triton": singles["front"]["processor_ms"] / singles["triton"]["processor_ms"],
    }
    record = {
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "pass_through": passed,
        "singles": singles,
        "summary": summary,
    }
    json.dump(record, sys.stdout, indent=2)
    print()
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "front.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        set_figures(output / "summary.json", summary)


if __name__ == "__main__":
    main()
