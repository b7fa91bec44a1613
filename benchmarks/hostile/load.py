"""Load on one server: good and bad requests together, a storm of cancelled ones, and requests that want its memory."""

from __future__ import annotations

import multiprocessing
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
from rich.console import Console

from benchmarks.hostile.bad import HEAD, KINDS, SERVICE, BadClient, BadTally, bomb, message
from benchmarks.hostile.clients import GoodClient, References, Tally, good_clients, in_threads
from benchmarks.hostile.greedy import GreedyClient
from benchmarks.hostile.target import MB, PeakMemory, Target

CLIENTS = 64
BAD_SHARE = 0.1
STORMERS = 8
GREEDY = 4
GREED_PAUSE_S = 0.01
SETTLE_S = 5.0
BOMB_MIB = 600
TEXT_MB = 800

console = Console(stderr=True)
_context = multiprocessing.get_context("spawn")


def in_another_process(work: Callable, *arguments: object) -> Callable:
    """Start work in a process of its own, so that clients wait for the server and not for each other.

    Returns:
        A function that waits for the result.
    """
    pool = _context.Pool(1)
    result = pool.apply_async(work, arguments)

    def wait() -> object:
        found = result.get(timeout=3600)
        pool.close()
        pool.join()
        return found

    return wait


def mixed_clients(ready: dict, references: References, total: int, clients: int, seed: int) -> tuple[Tally, BadTally]:
    """Send so many requests from so many clients, a tenth of them bad ones, every kind as often as the others."""
    generator = random.Random(seed)
    plan = ["good"] * total
    kinds = generator.sample(sorted(KINDS), len(KINDS))
    for number, place in enumerate(generator.sample(range(total), round(total * BAD_SHARE))):
        plan[place] = kinds[number % len(kinds)]
    for kind in ("http: gzip bomb", "http: deflate bomb"):
        bomb(100, kind.split()[1])  # made before the clock runs
    good, bad = Tally(), BadTally()
    lock = threading.Lock()

    def run(number: int) -> None:
        client, villain = GoodClient(ready, seed + number, references), BadClient(ready)
        while True:
            with lock:
                if not plan:
                    good.add(client.tally)
                    bad.add(villain.tally)
                    return
                step = plan.pop()
            client.step() if step == "good" else villain.step(step)

    in_threads(run, range(clients))
    return good, bad


def mixed(target: Target, references: References, total: int) -> dict:
    """10,000 mixed requests of 64 clients, in two processes of clients."""
    began, pid = time.monotonic(), target.processes()["triton"].pid
    halves = [
        in_another_process(mixed_clients, target.ready, references, total // 2, CLIENTS // 2, 1000 * half)
        for half in (1, 2)
    ]
    good, bad = Tally(), BadTally()
    for half in halves:
        found = half()
        good.add(found[0])
        bad.add(found[1])
    return {
        "good": good.record(),
        "bad": bad.record(),
        "seconds": round(time.monotonic() - began),
        "triton_restarted": target.processes()["triton"].pid != pid,
    }


def storm_clients(ready: dict, total: int) -> dict:
    """Send so many requests whose deadlines of 1 to 30 ms pass, most of them before the answer."""
    request = message().SerializeToString()
    outcomes: Counter = Counter()
    lock = threading.Lock()

    def run(seed: int) -> None:
        generator = random.Random(seed)
        call = grpc.insecure_channel(ready["grpc"]).unary_unary(f"{SERVICE}ModelInfer")
        found: Counter = Counter()
        for _ in range(total // STORMERS):
            try:
                call(request, timeout=generator.uniform(0.001, 0.03))
                found["OK"] += 1
            except grpc.RpcError as error:
                found[error.code().name] += 1
        with lock:
            outcomes.update(found)

    in_threads(run, range(STORMERS))
    return dict(outcomes)


def storm(target: Target, references: References, total: int) -> dict:
    """10,000 requests with deadlines of 1 to 30 ms from 8 clients, and 8 well-behaved clients beside them."""
    return beside_good_clients(target, references, storm_clients, total)


def beside_good_clients(target: Target, references: References, attack: Callable, total: int) -> dict:
    """Let so many requests or calls attack a server that 8 well-behaved clients ask."""
    began, pid = time.monotonic(), target.processes()["triton"].pid
    stop = threading.Event()
    tallies: list[Tally] = []
    beside = threading.Thread(target=lambda: tallies.append(good_clients(target.ready, references, 8, stop)))
    beside.start()
    outcomes = in_another_process(attack, target.ready, total)()
    time.sleep(SETTLE_S)
    stop.set()
    beside.join()
    return {
        "attack": outcomes,
        "good": tallies[0].record(),
        "seconds": round(time.monotonic() - began),
        "triton_restarted": target.processes()["triton"].pid != pid,
    }


def greedy_clients(ready: dict, total: int) -> dict:
    """Open so many calls and take no answer. A client whose connection is ended connects again."""
    host, _, port = ready["grpc"].partition(":")
    found: Counter = Counter()
    lock = threading.Lock()

    def run(_: int) -> None:
        client = GreedyClient(host, int(port))
        for _ in range(total // GREEDY):
            try:
                client.call(f"{SERVICE}ServerMetadata", b"")
                outcome = "calls"
            except OSError:
                client.close()
                client = GreedyClient(host, int(port))
                outcome = "connections_ended"
            with lock:
                found[outcome] += 1
            time.sleep(GREED_PAUSE_S)
        client.close()

    in_threads(run, range(GREEDY))
    return dict(found)


def greed(target: Target, references: References, total: int) -> dict:
    """10,000 calls whose answers four clients do not take, and 8 well-behaved clients beside them."""
    return beside_good_clients(target, references, greedy_clients, total) | {"clients": GREEDY}


def gzip_bombs(target: Target) -> list[str]:
    """Eight clients, each with four requests of 600 kB that are 600 MB large."""
    bomb(BOMB_MIB, "gzip")
    outcomes: list[str] = []

    def run(_: int) -> None:
        client = BadClient(target.ready)
        for _ in range(4):
            try:
                outcomes.append(client.post(bomb(BOMB_MIB, "gzip"), "Content-Encoding: gzip"))
            except OSError:
                outcomes.append("closed")

    in_threads(run, range(8))
    return outcomes


def huge_texts(target: Target) -> list[str]:
    """Texts of 800 MB: one that announces its size, and one that comes in chunks."""
    host, _, port = target.ready["http"].partition(":")
    outcomes = []
    for framing in (f"Content-Length: {TEXT_MB * MB}", "Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"{HEAD}{framing}\r\n\r\n".encode())
            chunk = b"a" * MB
            if "chunked" in framing:
                chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
            sent = 0
            try:
                while sent < TEXT_MB:
                    connection.sendall(chunk)
                    sent += 1
                outcomes.append(connection.recv(100)[9:12].decode())
            except OSError:
                outcomes.append(f"cut off after {sent} MB")
    return outcomes


def long_texts(target: Target) -> list[str]:
    """Eight clients whose requests are as large as the limits allow: 32 texts of 100 kB."""
    request = message([b"word " * 20_000] * 32).SerializeToString()
    outcomes: Counter = Counter()

    def run(_: int) -> None:
        client = BadClient(target.ready)
        for _ in range(8):
            try:
                outcomes[client.call(request)] += 1
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1

    in_threads(run, range(8))
    return list(outcomes.elements())


def memory(target: Target, references: References, total: int) -> dict:
    """Requests that want the server's memory, while one well-behaved client asks."""
    found: dict = {}
    stop = threading.Event()
    tallies: list[Tally] = []
    beside = threading.Thread(target=lambda: tallies.append(good_clients(target.ready, references, 1, stop)))
    beside.start()
    for name, attack in (("gzip", gzip_bombs), ("huge_text", huge_texts), ("long_texts", long_texts)):
        with PeakMemory(target) as peak:
            outcomes = Counter(attack(target))
            time.sleep(1)
        found[name] = {
            "outcomes": dict(outcomes),
            "before_mb": peak.before.rss_mb,
            "peak_mb": peak.most.rss_mb,
            "growth_mb": round(max(0.0, peak.most.rss_mb - peak.before.rss_mb), 1),
            "shm_growth_mb": round(max(0.0, peak.most.shm_mb - peak.before.shm_mb), 1),
        }
        console.print(f"  {name}: {found[name]}", highlight=False)
    stop.set()
    beside.join()
    return found | {"good": tallies[0].record()}
