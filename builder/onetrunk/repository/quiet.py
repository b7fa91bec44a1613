"""How much of the cores other programs leave: what is measured beside them says little about the models.

Asked of the cores themselves, since what a system counts as busy is in containers and sandboxes often not theirs.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

QUIET = 0.9
"""From this share on, a machine counts as quiet."""

_PROBE_S = 0.02
# About a millisecond, in which Python lets other threads run.
_ITERATIONS = 1000


def free_share(cores: int) -> float:
    """The share of all cores' time that as many threads, each always at work, get: 1 where nobody else works."""
    with ThreadPoolExecutor(cores) as pool:
        shares = list(pool.map(_work, range(cores)))
    return sum(got for got, _ in shares) / sum(passed for _, passed in shares)


def _work(_: int) -> tuple[float, float]:
    """Seconds on a core, and seconds that passed."""
    began, computed = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < _PROBE_S:
        hashlib.pbkdf2_hmac("sha256", b"", b"", _ITERATIONS)
    return time.thread_time() - computed, time.perf_counter() - began
