"""Pauses double up to a limit, differ between clients, and never go past the deadline."""

from __future__ import annotations

import pytest

from onetrunk.client.fault import Fault
from onetrunk.client.retry import Backoff, Deadline
from onetrunk.protocol.errors import DeadlineExceeded, NotReady

PASSING = Fault(NotReady("down"), passing=True)


def test_pauses_double_up_to_the_longest():
    backoff = Backoff(retries=20, first_s=0.1, longest_s=2.0)
    deadline = Deadline(1000.0)
    for tries, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (6, 2.0), (20, 2.0)):
        pauses = [backoff.pause_s(PASSING, tries, deadline) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


@pytest.mark.parametrize(
    ("fault", "tries"), [(PASSING, 4), (Fault(NotReady("down"), passing=False), 1)], ids=["one too many", "for good"]
)
def test_the_faults_own_error_ends_it(fault, tries):
    with pytest.raises(NotReady, match="down"):
        Backoff(retries=3).pause_s(fault, tries, Deadline(1000.0))


def test_a_pause_past_the_deadline_is_not_begun():
    with pytest.raises(NotReady, match="down"):
        Backoff(retries=3, first_s=2.0).pause_s(PASSING, 1, Deadline(0.9))


def test_a_deadline_ends():
    now = [100.0]
    deadline = Deadline(2.5, clock=lambda: now[0])
    now[0] = 101.0
    assert deadline.left_s() == 1.5
    now[0] = 102.5
    with pytest.raises(DeadlineExceeded, match=r"2\.5 s"):
        deadline.left_s()
