"""Why a Triton ended."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from onetrunk.serving import causes
from onetrunk.serving.causes import death_cause, full_disks, oom_kills
from tests.fixtures.stand_ins import stand_in

LOG = "E1123 22:30:53.5 1 a.cc:1] \"failed to load 'head_mood' version 1: Internal: head_mood: broken\"\n"
FULL = SimpleNamespace(f_blocks=100, f_bavail=0, f_frsize=4096)
ROOMY = SimpleNamespace(f_blocks=10**6, f_bavail=10**6, f_frsize=4096)


@pytest.fixture(autouse=True)
def disks(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths that are full."""
    full: set[str] = set()
    monkeypatch.setattr(causes, "os", stand_in(os, statvfs=lambda path: FULL if str(path) in full else ROOMY))
    return full


@pytest.mark.parametrize(
    ("status", "logged", "out_of_memory", "cause"),
    [
        (
            139,
            LOG,
            False,
            "exit status 139: SIGSEGV; Triton 24.10 dies of cancelled gRPC requests, "
            "triton-inference-server/server#7368",
        ),
        (137, "", False, "exit status 137: SIGKILL; somebody killed it"),
        (137, "", True, "exit status 137: SIGKILL; the kernel killed a process for want of memory"),
        (134, "", False, "exit status 134: SIGABRT"),
        (-9, "", False, "exit status -9: SIGKILL; somebody killed it"),
        (1, LOG, False, "exit status 1: head_mood: broken"),
        (1, "", False, "exit status 1"),
        (0, "", False, "exit status 0"),
        (255, "", False, "exit status 255"),
    ],
)
def test_a_status_is_explained(status: int, logged: str, out_of_memory: bool, cause: str) -> None:
    assert death_cause(status, logged, out_of_memory=out_of_memory) == cause


def test_full_disks_are_named(disks: set[str], tmp_path: Path) -> None:
    disks |= {"/dev/shm", str(tmp_path)}
    cause = death_cause(135, "", out_of_memory=False, disks=[tmp_path, Path("/")])
    assert cause == f"exit status 135: SIGBUS; {tmp_path} is full; /dev/shm is full"
    assert full_disks() == [Path("/dev/shm")]


def test_the_kernels_kills_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 2\n")
    (tmp_path / "events").write_text("oom 9\noom_kill 1\noom_group_kill 4\n")
    files = tuple(tmp_path / name for name in ("vmstat", "events", "absent"))
    monkeypatch.setattr(causes, "COUNTERS_OF_OOM", files)
    assert oom_kills() == 3
