"""Why a Triton ended, as far as that can be known from outside."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path

from onetrunk.serving.log import failure_reason
from onetrunk.serving.shared_memory import SHARED_MEMORY

# Less than this is no room for anything that Triton writes.
FULL_BYTES = 1 << 20
CANCELLED = "Triton 24.10 dies of cancelled gRPC requests, triton-inference-server/server#7368"
COUNTERS_OF_OOM = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))


def death_cause(status: int, logged: str, *, out_of_memory: bool, disks: Iterable[Path] = ()) -> str:
    """Return in one line why Triton ended.

    Args:
        status: Its exit status, as a shell gives it: 128 and the signal's number if a signal ended it.
        logged: What it logged last.
        out_of_memory: Whether the kernel has killed a process for want of memory meanwhile.
        disks: Files or folders to which it writes.
    """
    causes = [f"exit status {status}"]
    number = status - 128 if status > 128 else max(-status, 0)
    if number in {known.value for known in signal.Signals}:
        causes.append(signal.Signals(number).name)
    if number == signal.SIGSEGV:
        causes.append(CANCELLED)
    if number == signal.SIGKILL:
        causes.append("the kernel killed a process for want of memory" if out_of_memory else "somebody killed it")
    causes += [f"{path} is full" for path in full_disks(disks)]
    if number == 0 and (reason := failure_reason(logged)) is not None:
        causes.append(reason)
    return ": ".join([causes[0], "; ".join(causes[1:])] if causes[1:] else causes)


def full_disks(paths: Iterable[Path] = ()) -> list[Path]:
    """Return which of these paths, the folder for temporary files and shared memory are full."""
    found: dict[int, Path] = {}
    for path in (*paths, Path(tempfile.gettempdir()), SHARED_MEMORY):
        try:
            room, device = os.statvfs(path), os.stat(path).st_dev
        except OSError:
            continue
        if room.f_blocks and room.f_bavail * room.f_frsize < FULL_BYTES:
            found.setdefault(device, path)  # one path is enough to name a disk
    return list(found.values())


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory: on this machine, or in this container."""
    count = 0
    for file in COUNTERS_OF_OOM:
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count
