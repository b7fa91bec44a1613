"""Too small a /dev/shm and full disks, real ones: small file systems in a mount namespace of the server's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.fixtures import handmade_repository

UNSHARE = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
pytestmark = pytest.mark.hostile

SERVE_REPO = [sys.executable, "-c", "from onetrunk.serving.cli import serve_repo; serve_repo()"]
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


@pytest.fixture(autouse=True)
def may_mount() -> None:
    """Skips where a user may not mount: in most containers."""
    try:
        done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1)")
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.decode().strip()}")


@pytest.fixture
def disk() -> Iterator[Path]:
    """The folder for temporary files, on which a test mounts a small disk. Its path is short, since sockets' are."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    path.rmdir()  # what is in it was written to the mounted disk, and is gone with the server


def mounted(folder: Path, size: str, command: list[str]) -> list[str]:
    """The command line that runs a command with a disk of this size on a folder."""
    return [*UNSHARE, "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"', "sh", *command]


def refusal(folder: Path, size: str, repository: Path, disk: Path) -> str:
    """The one line with which serve-repo refuses, after which nothing may be left in the folder for temporary files."""
    serve = " ".join(f"'{part}'" for part in [*SERVE_REPO, str(repository), *FREE_PORTS])
    script = f'timeout 150 {serve}; status=$?; ls -A "{disk}"; exit $status'
    environment = {**os.environ, "TMPDIR": str(disk), "COLUMNS": "1000"}
    done = subprocess.run(
        mounted(folder, size, ["sh", "-c", script]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "", "left behind"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@contextlib.contextmanager
def served(folder: Path, size: str, repository: Path, **environment: str) -> Iterator[tuple[Any, dict[str, Any], Path]]:
    """A serve-repo that is ready, what it said then, and where it says what it notices."""
    notes = repository.parent / "notes"
    with notes.open("wb") as stderr:
        process = subprocess.Popen(
            mounted(folder, size, [*SERVE_REPO, str(repository), *FREE_PORTS, "--json"]),
            env={**os.environ, "COLUMNS": "1000", **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, notes.read_text()
        yield process, json.loads(line), notes
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Keeps a disk full, also when something on it is removed."""
    done = threading.Event()

    def fill() -> None:
        with (disk / "filler").open("wb", buffering=0) as file:
            while not done.wait(0.001):
                with contextlib.suppress(OSError):
                    while file.write(bytes(1 << 12)):
                        pass

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield
    finally:
        done.set()
        filling.join()
        (disk / "filler").unlink()


@pytest.fixture
def wide_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One whose hidden states are 16 MiB a batch: 32 texts of 32 tokens. A full batch needs 73 MiB."""
    monkeypatch.setattr(handmade_repository, "WIDTH", 4096)
    return handmade_repository.write_repository(tmp_path / "model_repository")


def test_shared_memory_that_is_too_small_is_refused_with_the_number(wide_repository: Path, disk: Path) -> None:
    line = refusal(Path("/dev/shm"), "64m", wide_repository, disk)
    assert "/dev/shm has 64 MiB free, and a full batch of 32 texts of 32 tokens needs 73 MiB" in line
    assert "--shm-size=256m" in line


def test_shared_memory_as_large_as_computed_holds_a_full_batch(wide_repository: Path) -> None:
    with served(Path("/dev/shm"), "73m", wide_repository) as (process, ready, notes):
        assert "several at once need up to 141 MiB" in notes.read_text()
        used = [path.stat().st_size for path in Path(f"/proc/{process.pid}/root/dev/shm").iterdir()]
        assert sum(used) == 73 << 20, "the first request was a full batch"
        with InferenceServerClient(ready["grpc"]) as client:
            assert client.is_server_ready()


def test_a_full_disk_at_the_start_is_one_line_and_leaves_nothing(repository: Path, disk: Path) -> None:
    line = refusal(disk, "1m", repository, disk)
    assert f"{disk} has no room for Triton's backends (No space left on device)" in line
    assert "TMPDIR" in line


def test_a_full_disk_at_a_restart_is_named_and_survived(repository: Path, disk: Path) -> None:
    with served(disk, "16m", repository, TMPDIR=str(disk)) as (process, ready, notes):
        inside = Path(f"/proc/{process.pid}/root{disk}")
        before = sorted(path.name for path in inside.iterdir())
        triton = psutil.Process(ready["pid"])
        with full(inside):
            triton.kill()
            wait_for(lambda: notes.read_text().count("Triton does not restart") >= 3)
            told = notes.read_text()
            assert "Triton died: exit status 137: SIGKILL; somebody killed it" in told
            assert f"{disk} has no room for Triton's backends (No space left on device)" in told
            assert not [path.name for path in inside.iterdir() if path.is_dir()], "no folder is left of a try"
        wait_for(lambda: "Triton answers again" in notes.read_text())
        assert len(list(inside.iterdir())) == len(before)
        with InferenceServerClient(ready["grpc"]) as client:
            assert client.is_model_ready("multitask")
