"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """The processor and how many cores of it there are, as in ``AMD EPYC (2 cores)``."""
    return f"{processor_model()} ({os.cpu_count()} cores)"


def usable_cores() -> int:
    """How many cores this process may run on: with ``taskset`` and the like fewer than there are."""
    return len(os.sched_getaffinity(0))


def processor_model() -> str:
    """The processor, as in ``AMD EPYC``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
