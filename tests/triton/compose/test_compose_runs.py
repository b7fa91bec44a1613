"""docker-compose.yml's commands, run for real: without a container, on this machine's Triton and perf_analyzer."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from onetrunk.client.bench.perf_analyzer import NoPerfAnalyzer, find_perf_analyzer
from onetrunk.serving.command import ADMIN_HEADER
from onetrunk.serving.installation import environment, find_triton, make_runtime
from onetrunk.serving.process import TritonProcess
from tests.fixtures.compose import ROOT

TIMEOUT_S = 90.0
KEY = "a-key-for-this-test"


@dataclass(frozen=True)
class Composed:
    """The service `triton`, running outside of a container."""

    process: TritonProcess
    ports: dict[str, int]  # the port in docker-compose.yml -> the free one taken here
    healthcheck: list[str]

    def is_healthy(self) -> bool:
        """Runs the healthcheck, as Docker would."""
        return subprocess.run(self.healthcheck, capture_output=True).returncode == 0

    def get(self, port: str, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> int:
        """The status of an HTTP request."""
        request = Request(f"http://127.0.0.1:{self.ports[port]}{path}", method=method, headers=headers or {})
        try:
            with urlopen(request, timeout=10) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()


def wait_until(done: Callable[[], bool]) -> None:
    """Waits for something, and fails where it does not come."""
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replace_all(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def composed(services: dict[str, Any], tiny_repository: Path, tmp_path: Path) -> Iterator[Composed]:
    """Triton, as serve.sh starts it with docker-compose.yml's arguments; only paths and ports are this machine's."""
    service = services["triton"]
    ports = dict(zip(("8000", "8001", "8002"), free_ports(3), strict=True))
    here = {
        "/opt/onetrunk/": f"{ROOT / 'deploy' / 'triton'}/",
        "=/models": f"={tiny_repository}",
        **{f"-port={old}": f"-port={new}" for old, new in ports.items()},
        **{f":{old}/": f":{new}/" for old, new in ports.items()},
    }
    installation = find_triton()
    runtime = make_runtime(installation)
    command = [
        *(replace_all(argument, here) for argument in service["command"]),
        # What NVIDIA's image has in its place, and a container for itself.
        f"--backend-directory={runtime.backends}",
        f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
    ]
    variables = environment(installation, runtime, os.environ)
    variables["PATH"] = f"{installation.binary.parent}:{variables['PATH']}"
    variables |= {**service["environment"], "HOME": str(tmp_path), "ONETRUNK_ADMIN_KEY": KEY}
    log = tmp_path / "triton.log"
    process = TritonProcess(command, variables, runtime, log)
    try:
        assert service["healthcheck"]["test"][0] == "CMD"
        triton = Composed(process, ports, [replace_all(part, here) for part in service["healthcheck"]["test"][1:]])
        wait_until(lambda: process.exit_status() is not None or triton.is_healthy())
        assert process.exit_status() is None, log.read_text()
        yield triton
    finally:
        process.stop()


def test_the_command_serves_the_repository(composed: Composed) -> None:
    assert composed.get("8000", "/v2/models/multitask_tokens/ready") == 200
    assert composed.get("8000", "/v2/models/multitask/config") == 200
    assert composed.get("8002", "/metrics") == 200
    index = "/v2/repository/index"
    assert composed.get("8000", index, method="POST") == 403
    assert composed.get("8000", index, method="POST", headers={ADMIN_HEADER: KEY}) == 200


def test_healthcheck_sees_a_dead_tokenizer_which_triton_calls_ready(composed: Composed) -> None:
    (tokenizer,) = [
        child
        for child in psutil.Process(composed.process.pid).children()
        if "/tokenizer/1/model.py" in str(child.cmdline())
    ]
    tokenizer.kill()
    wait_until(lambda: tokenizer.status() == psutil.STATUS_ZOMBIE)
    assert composed.get("8000", "/v2/models/multitask/ready") == 200
    assert not composed.is_healthy()


def test_bench_measures(composed: Composed, services: dict[str, Any]) -> None:
    here = {"triton:8001": f"127.0.0.1:{composed.ports['8001']}", "/bench/": f"{ROOT / 'deploy' / 'bench'}/"}
    # One short look in place of the full measurement.
    here |= {"--concurrency-range=1:4": "--concurrency-range=2", "interval=5000": "interval=500"}
    command = [replace_all(argument, here) for argument in services["bench"]["command"]]
    try:
        with find_perf_analyzer() as found:
            done = subprocess.run(
                [found.path, *command[1:], "--stability-percentage=999"],
                env=found.environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
    except NoPerfAnalyzer as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Concurrency: 2, throughput:" in done.stdout
