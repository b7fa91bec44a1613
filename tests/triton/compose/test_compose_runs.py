"""docker-compose.yml's commands, run for real: without a container, on this machine's Triton and perf_analyzer."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
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
from onetrunk.protocol.names import ADMIN_HEADER
from onetrunk.serving.installation import environment, find_triton, make_runtime
from onetrunk.serving.process import TritonProcess
from tests.fixtures.compose import FRONT, ROOT, SERVE
from tests.fixtures.ports import free_port

TIMEOUT_S = 90.0
KEY = "a-key-for-this-test"


@dataclass(frozen=True)
class Composed:
    """The services `triton` and `front`, running outside of containers."""

    triton: TritonProcess
    front: subprocess.Popen[bytes]
    sockets: Path
    ports: dict[str, int]  # the port in docker-compose.yml -> the free one taken here
    healthchecks: dict[str, list[str]]  # by service

    def is_healthy(self, service: str) -> bool:
        """Runs a service's healthcheck, as Docker would."""
        return subprocess.run(self.healthchecks[service], capture_output=True).returncode == 0

    def get(self, port: str, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> int:
        """The status of an HTTP request to the front."""
        request = Request(f"http://127.0.0.1:{self.ports[port]}{path}", method=method, headers=headers or {})
        try:
            with urlopen(request, timeout=60) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code


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
    """Triton and its front, started with docker-compose.yml's commands; only paths and ports are this machine's."""
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    # In a container the repository is mounted for reading; here Triton would leave byte code in that of other tests.
    models = shutil.copytree(tiny_repository, tmp_path / "models")
    ports = {port: free_port() for port in ("8000", "8001", "8002")}
    here = {
        "/opt/onetrunk/serve.sh": str(SERVE),
        "/opt/onetrunk/healthy.py": str(FRONT.parent / "healthy.py"),
        "/run/onetrunk": str(sockets),
        "=/models": f"={models}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        **{f"-port={old}": f"-port={new}" for old, new in ports.items()},
    }
    checks = {
        name: [replace_all(part, here) for part in services[name]["healthcheck"]["test"][1:]]
        for name in ("triton", "front")
    }
    checks["front"] = [sys.executable, checks["front"][1], str(ports["8000"])]
    triton = start_triton(services["triton"], here, tmp_path)
    front = start_front(services["front"], here, tmp_path)
    try:
        found = Composed(triton, front, sockets, ports, checks)
        wait_until(lambda: triton.exit_status() is not None or front.poll() is not None or found.is_healthy("front"))
        assert triton.exit_status() is None, (tmp_path / "triton.log").read_text()
        assert front.poll() is None, (tmp_path / "front.log").read_text()
        yield found
    finally:
        front.terminate()
        front.wait(timeout=60)
        triton.stop()


def start_triton(service: dict[str, Any], here: dict[str, str], folder: Path) -> TritonProcess:
    """The service `triton`."""
    installation = find_triton()
    runtime = make_runtime(installation)
    command = [
        *(replace_all(argument, here) for argument in service["command"]),
        # What NVIDIA's image has in its place, and a container for itself.
        f"--backend-directory={runtime.backends}",
        f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}",
    ]
    variables = environment(installation, runtime, os.environ)
    variables["PATH"] = f"{installation.binary.parent}:{variables['PATH']}"
    variables |= {name: replace_all(value, here) for name, value in service["environment"].items()}
    return TritonProcess(command, variables | {"HOME": str(folder)}, runtime, folder / "triton.log")


def start_front(service: dict[str, Any], here: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """The service `front`, with an admin key."""
    program, *arguments = (replace_all(argument, here) for argument in service["command"])
    variables = os.environ | service["environment"] | {"HOME": str(folder), "ONETRUNK_ADMIN_KEY": KEY}
    with (folder / "front.log").open("wb") as log:
        return subprocess.Popen(
            [Path(sys.executable).parent / program, *arguments], env=variables, stdout=log, stderr=log
        )


def test_the_commands_serve_the_repository(composed: Composed) -> None:
    assert composed.is_healthy("triton")
    assert composed.get("8000", "/v2/models/multitask_tokens/ready") == 200
    assert composed.get("8000", "/v2/models/multitask/config") == 200
    assert composed.get("8002", "/metrics") == 200
    index = "/v2/repository/index"
    assert composed.get("8000", index, method="POST") == 403
    assert composed.get("8000", index, method="POST", headers={ADMIN_HEADER: KEY}) == 200


@pytest.mark.hostile
def test_triton_listens_where_only_its_user_comes(composed: Composed) -> None:
    processes = [psutil.Process(composed.triton.pid), *psutil.Process(composed.triton.pid).children(recursive=True)]
    assert not [found for process in processes for found in process.net_connections(kind="inet")]
    assert stat.S_IMODE(composed.sockets.stat().st_mode) == 0o700
    for socket_file in composed.sockets.iterdir():
        assert not stat.S_IMODE(socket_file.stat().st_mode) & 0o077, socket_file


def test_healthchecks_see_a_dead_tokenizer_which_triton_calls_ready(composed: Composed) -> None:
    (tokenizer,) = [
        child
        for child in psutil.Process(composed.triton.pid).children()
        if "/tokenizer/1/model.py" in str(child.cmdline())
    ]
    tokenizer.kill()
    wait_until(lambda: tokenizer.status() == psutil.STATUS_ZOMBIE)
    assert composed.get("8000", "/v2/models/multitask/ready") == 200
    assert not composed.is_healthy("triton")
    wait_until(lambda: not composed.is_healthy("front"))


def test_bench_measures(composed: Composed, services: dict[str, Any]) -> None:
    here = {"front:8001": f"127.0.0.1:{composed.ports['8001']}", "/bench/": f"{ROOT / 'deploy' / 'bench'}/"}
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
