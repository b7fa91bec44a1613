"""What counts as doing nothing, on an idle machine and on a busy one."""

from __future__ import annotations

from concurrent.futures import Future

import psutil
import pytest

from onetrunk.serving.health import STILL_ON_DISK_S, STILL_S, Activity, StubHealth
from onetrunk.serving.stubs import Stub, StubProcess

SLEEPING, RUNNING, ON_DISK = psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP


@pytest.mark.parametrize(
    ("state", "cpu_a_second", "still_after_s"),
    [
        (SLEEPING, 0.0, STILL_S),
        (psutil.STATUS_STOPPED, 0.0, STILL_S),
        (SLEEPING, 0.005, STILL_S),  # only looks whether Triton still lives
        (SLEEPING, 0.5, None),  # works
        (RUNNING, 0.0, None),  # would work, and gets no CPU
        (ON_DISK, 0.0, STILL_ON_DISK_S),
    ],
)
def test_a_process_is_still_if_it_neither_uses_nor_waits_for_a_cpu(
    state: str, cpu_a_second: float, still_after_s: float | None
) -> None:
    activity = Activity(SLEEPING, 0.0, now=0.0)
    still_at = None
    for quarter in range(4 * 60):
        now = quarter / 4
        activity.see(state, cpu_a_second * now, now)
        if still_at is None and activity.is_still(0.0, now):
            still_at = now
    assert still_at == still_after_s


def test_a_process_has_as_long_from_the_moment_it_is_asked() -> None:
    activity = Activity(SLEEPING, 0.0, now=0.0)
    activity.see(SLEEPING, 0.0, 100.0)
    assert not activity.is_still(since=99.0, now=100.0)
    assert activity.is_still(since=97.0, now=100.0)


def test_a_process_under_a_debugger_is_left_alone() -> None:
    process = StubProcess(Stub("head_mood", 1, "head_mood_0_0"), 1, psutil.STATUS_TRACING_STOP, 1.0, "region")
    health = StubHealth(process, now=0.0, cpu_limit_s=3.0)
    health.note_probe(Future(), 1.0)
    assert [health.see(process, None, float(now)) for now in range(1, 100)] == [None] * 99
