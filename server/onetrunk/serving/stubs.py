"""The Python processes in which Triton runs Python models: one an instance of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

STUB_PROGRAM = "triton_python_backend_stub"


@dataclass(frozen=True, order=True)
class Stub:
    """Which model a stub runs. Equal for the stub that takes the place of a dead one."""

    model: str
    version: int
    instance: str


def parse_stub(command: list[str]) -> Stub | None:
    """Reads a stub's command line; None where the process is none.

    Triton gives: program, model file (`REPOSITORY/MODEL/VERSION/FILE`), shared memory region and its two sizes, process
    id of Triton, backend folder, a handle, instance name, backend.
    """
    if len(command) < 9 or Path(command[0]).name != STUB_PROGRAM:
        return None
    version, model = Path(command[1]).parent.name, Path(command[1]).parents[1].name
    return Stub(model, int(version), command[8]) if version.isdecimal() else None


def living_stubs(triton_pid: int) -> set[Stub]:
    """Gives the stubs of a Triton that are alive. A stub that died stays in the process table as a zombie."""
    found = set()
    try:
        children = psutil.Process(triton_pid).children()
    except psutil.NoSuchProcess:
        return set()
    for child in children:
        try:
            stub = parse_stub(child.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if stub is not None:
            found.add(stub)
    return found
