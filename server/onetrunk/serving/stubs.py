"""The processes of the models: Triton runs each instance of a Python model in a process of its own, a stub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

STUB_PROGRAM = "triton_python_backend_stub"


@dataclass(frozen=True, order=True)
class Stub:
    """A stub, by the model that it runs. The stub that replaces a dead one is equal to it."""

    model: str
    version: int
    instance: str


@dataclass(frozen=True)
class StubProcess:
    """A living process of a stub, as one look finds it.

    Attributes:
        stub: What it runs.
        pid: Its process id.
        state: What the kernel says of it, one of psutil's `STATUS_` constants.
        cpu_s: The CPU time in seconds that it has used.
        region: The name of its region in /dev/shm.
    """

    stub: Stub
    pid: int
    state: str
    cpu_s: float
    region: str


def parse_stub(command: list[str]) -> Stub | None:
    """Read a stub's command line; return None for another process.

    Triton passes: program, model file (`REPOSITORY/MODEL/VERSION/FILE`), shared memory region and its two sizes,
    process id of Triton, backend folder, a handle, instance name, backend.
    """
    if len(command) < 9 or Path(command[0]).name != STUB_PROGRAM:
        return None
    version, model = Path(command[1]).parent.name, Path(command[1]).parents[1].name
    return Stub(model, int(version), command[8]) if version.isdecimal() else None


def stub_processes(triton_pid: int) -> list[StubProcess]:
    """Return the processes of a Triton's stubs that live. One that died stays in the process table as a zombie."""
    found = []
    try:
        children = psutil.Process(triton_pid).children()
    except psutil.NoSuchProcess:
        return []
    for child in children:
        try:
            command, state, cpu = child.cmdline(), child.status(), child.cpu_times()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        stub = parse_stub(command)
        if stub is not None and state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            found.append(StubProcess(stub, child.pid, state, cpu.user + cpu.system, command[2]))
    return found


def process_state(pid: int) -> str | None:
    """Return what the kernel says of a process, one of psutil's `STATUS_` constants, or None if there is none."""
    try:
        return str(psutil.Process(pid).status())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
