"""The front before a real Triton: attacks that used to end the service, and what becomes of a front that fails."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.serving import Server

pytestmark = pytest.mark.hostile

NOBODY = 65534


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[[Path], Path]) -> Iterator[Server]:
    """A server for these attacks, with its key and its watchdog."""
    path = make_repository(tmp_path_factory.mktemp("attacked") / "model_repository")
    with Server(path, http_port=0, grpc_port=0, metrics_port=0, admin_key="the-key-of-the-admin") as running:
        yield running


def question() -> Any:
    request = service_pb2.ModelInferRequest(model_name="multitask")
    request.inputs.add(name="text", datatype="BYTES", shape=(1, 1))
    request.raw_input_contents.append((10).to_bytes(4, "little") + b"a good day")
    return request


def storm(url: str, requests: int, seed: int) -> Counter[str]:
    """Send requests whose deadlines pass before most answers, over a connection of their own."""
    chance, ends = random.Random(seed), Counter[str]()
    with grpc.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(requests):
            try:
                stub.ModelInfer(question(), timeout=chance.uniform(0.001, 0.010))
                ends["answered"] += 1
            except grpc.RpcError as error:
                ends[error.code().name] += 1
    return ends


def test_a_storm_of_cancelled_requests_harms_nobody(attacked: Server) -> None:
    """Triton 24.10 itself dies within some dozen of them (server#7368)."""
    pid, over = attacked.pid, threading.Event()
    failures: list[Exception] = []
    answered = Counter[int]()

    def behave(number: int) -> None:
        with Client(attacked.grpc_url) as client:
            while not over.is_set():
                try:
                    client.predict("a good day")
                    answered[number] += 1
                except Exception as error:
                    failures.append(error)

    good = [threading.Thread(target=behave, args=(number,)) for number in range(2)]
    ends: list[Counter[str]] = []
    bad = [threading.Thread(target=lambda n=n: ends.append(storm(attacked.grpc_url, 200, n))) for n in range(4)]
    for thread in (*good, *bad):
        thread.start()
    for thread in bad:
        thread.join()
    over.set()
    for thread in good:
        thread.join()
    total = sum(ends, Counter())
    assert total.total() == 800
    assert total["DEADLINE_EXCEEDED"] > 100, "otherwise this attacked nothing"
    assert failures == []
    assert min(answered[number] for number in range(2)) > 0
    assert attacked.pid == pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_front_that_dies_or_hangs_is_replaced(
    attacked: Server, asker: Callable[[Server], Any], number: signal.Signals
) -> None:
    front, triton = attacked.front_pid, attacked.pid
    assert front is not None
    os.kill(front, number)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        try:
            if attacked.front_pid != front and asker(attacked)("multitask", text=["a good day"]):
                break
        except InferenceServerException:
            pass
        time.sleep(0.1)
    assert attacked.pid == triton, "Triton went on"
    assert not psutil.pid_exists(front)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_no_key_and_reaches_no_triton(attacked: Server) -> None:
    script = """
import glob, os, socket, sys
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(path, "rb").read().replace(b"\\0", b" ").decode("utf-8", "replace"))
    except OSError:
        pass
folder = sys.argv[1]
for name in ("grpc.sock:1", "http.sock", "metrics.sock"):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.path.join(folder, name))
            print(name, "was reached")
        except OSError as error:
            print(name, error.strerror)
"""
    backends = next(part for part in psutil.Process(attacked.pid).cmdline() if "--backend-directory=" in part)
    folder = Path(backends.partition("=")[2]).parent
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", script, folder],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert "tritonserver" in done.stdout, "it reads what it may"
    assert "the-key-of-the-admin" not in done.stdout
    names = ("grpc.sock:1", "http.sock", "metrics.sock")
    assert [line for line in done.stdout.splitlines() if line.startswith(names)] == [
        f"{name} Permission denied" for name in names
    ]


def test_nothing_of_the_front_outlives_a_killed_launcher(handmade_repository: Path) -> None:
    script = """
import sys, time
from onetrunk.serving import Server
server = Server(sys.argv[1], http_port=0, grpc_port=0, metrics_port=0)
server.start()
print(server.front_pid, flush=True)
time.sleep(60)
"""
    launcher = subprocess.Popen(
        [sys.executable, "-c", script, str(handmade_repository)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    front = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    front.wait(60)


def metrics_of(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_each_part_tells_a_histogram_of_its_seconds(attacked: Server, asker: Callable[[Server], Any]) -> None:
    ask, asked = asker(attacked), 20

    def counts(metrics: dict[str, float]) -> dict[str, float]:
        names = ("tokenizer", "trunk_00_", "head_mood")
        start = "onetrunk_part_seconds_count{part="
        return {name: metrics[name] for name in metrics if name.startswith(tuple(f'{start}"{part}' for part in names))}

    def told() -> dict[str, float]:
        earlier = counts(metrics_of(attacked))
        time.sleep(1.1)
        ask("multitask", text=["a good day"], outputs=["mood"])  # with it, the parts tell what they have counted
        # Unless a probe of the server came just before it: then what comes a second later tells it.
        time.sleep(1.1)
        with AdminClient(attacked.triton_url) as admin:
            admin.ask("multitask", [("a check, which is not counted", "")], ["mood"])
        deadline = time.monotonic() + 60
        while True:
            found = metrics_of(attacked)
            now = counts(found)
            if len(now) >= 3 and all(now[name] > earlier.get(name, 0.0) for name in now):
                # What is kept for a moment may be of an earlier request: it stays as it is once it has all. A part
                # tells what it has counted at most once a second, and on a busy machine later.
                time.sleep(4)
                if counts(metrics_of(attacked)) == now:
                    return found
            assert time.monotonic() < deadline
            time.sleep(0.05)

    before = told()
    began = time.monotonic()
    for _ in range(asked):
        ask("multitask", text=["a good day", "b"], outputs=["mood"])
    longest_s = time.monotonic() - began
    after = told()
    first_segment = next(name for name in after if 'part="trunk_00_' in name).split('part="')[1].split('"')[0]
    for part in ("tokenizer", first_segment, "head_mood"):
        grown = {name: after[name] - before.get(name, 0.0) for name in after if f'part="{part}"' in name}
        count = grown[f'onetrunk_part_seconds_count{{part="{part}"}}']
        buckets = [
            grown[name]
            for name in sorted(grown, key=lambda name: float(name.partition('le="')[2].partition('"')[0] or 0))
            if 'le="' in name
        ]
        assert count == asked + 1 == buckets[-1], part
        assert buckets == sorted(buckets)
        assert 0 < grown[f'onetrunk_part_seconds_sum{{part="{part}"}}'] < longest_s + 5


def test_metrics_by_task_say_who_is_at_fault(attacked: Server, asker: Callable[[Server], Any]) -> None:
    def metrics() -> dict[str, float]:
        return metrics_of(attacked)

    ask = asker(attacked)
    ask("multitask", text=["a good day"], outputs=["mood"])
    deadline = time.monotonic() + 60
    while 'onetrunk_task_requests_total{outcome="ok",task="mood"}' not in metrics():  # until it knows the tasks
        assert time.monotonic() < deadline
        ask("multitask", text=["a good day"], outputs=["mood"])
        time.sleep(0.1)
    before = metrics()
    ask("multitask", text=["a good day", "b"], outputs=["mood"])
    with pytest.raises(InferenceServerException, match="nothing to read"):
        ask("multitask", text=[" "], outputs=["mood"])
    after = metrics()

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    deadline = time.monotonic() + 60
    while sum(grown(name) for name in after if name.startswith("onetrunk_texts_total")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.5)  # the tokenizer tells what it counted once a second, with an answer
        ask("multitask", text=["a good day"], outputs=["truncated"])
        after = metrics()
    assert grown('onetrunk_task_requests_total{outcome="ok",task="mood"}') == 1
    assert grown('onetrunk_task_requests_total{outcome="client",task="mood"}') == 1
    assert grown('onetrunk_task_texts_total{task="mood"}') == 2
    assert grown('onetrunk_task_seconds_count{task="mood"}') == 1
    assert not any("server" in name and grown(name) for name in after if name.startswith("onetrunk_task"))
