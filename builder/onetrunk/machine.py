"""The machine on which a measurement is made."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor and its number of cores, such as ``AMD EPYC (2 cores)``."""
    return f"{processor_model()} ({os.cpu_count()} cores)"


def usable_cores() -> int:
    """Return the number of cores that this process may use, which ``taskset`` and the like restrict."""
    return len(os.sched_getaffinity(0))


def processor_model() -> str:
    """Return the processor, such as ``AMD EPYC``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
