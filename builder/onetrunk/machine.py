"""The machine on which a measurement is made."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# By the flags of Linux, the best first.
_INTEGER_UNITS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512bw": "AVX-512 without VNNI",
    "avx2": "AVX2",
    "i8mm": "Arm i8mm",
    "asimddp": "Arm dot product",
}


def processor_name() -> str:
    """Return the processor and its number of cores, such as ``AMD EPYC (2 cores)``."""
    return f"{processor_model()} ({os.cpu_count()} cores)"


def environment_for_others() -> dict[str, str]:
    """Return the environment for another program: without what is set for OneTrunk, such as the admin key."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ONETRUNK_")}


def usable_cores() -> int:
    """Return the number of cores that this process may use, which ``taskset`` and the like restrict."""
    return len(os.sched_getaffinity(0))


def integer_unit() -> str:
    """Return the processor's best unit for 8-bit integers, which decides how int8 models are rounded."""
    flags = _flags()
    return next((name for flag, name in _INTEGER_UNITS.items() if flag in flags), platform.machine())


def has_matrix_units() -> bool:
    """Return whether the processor has matrix units for bf16 (AMX), without which OpenVINO is slower in it."""
    return "amx_bf16" in _flags()


def _flags() -> set[str]:
    try:
        return set(re.findall(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.M)[0].split())
    except (OSError, IndexError):
        return set()


def processor_model() -> str:
    """Return the processor, such as ``AMD EPYC``."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
