"""Pauses double up to a limit, differ between clients, and never go past the deadline."""

from __future__ import annotations

import pytest

from onetrunk.client.retry import Deadline, Failure, RetryPolicy
from onetrunk.protocol.errors import DeadlineExceeded, NotReady

TRANSIENT = Failure(NotReady("down"), transient=True)


def test_pauses_double_up_to_the_longest():
    policy = RetryPolicy(retries=20, first_s=0.1, longest_s=2.0)
    deadline = Deadline(1000.0)
    for tries, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (6, 2.0), (20, 2.0)):
        pauses = [policy.pause_s(TRANSIENT, tries, deadline) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


@pytest.mark.parametrize(
    ("failure", "tries"),
    [(TRANSIENT, 4), (Failure(NotReady("down"), transient=False), 1)],
    ids=["too many", "final"],
)
def test_the_failures_own_error_ends_it(failure, tries):
    with pytest.raises(NotReady, match="down"):
        RetryPolicy(retries=3).pause_s(failure, tries, Deadline(1000.0))


def test_a_pause_past_the_deadline_is_not_begun():
    with pytest.raises(NotReady, match="down"):
        RetryPolicy(retries=3, first_s=2.0).pause_s(TRANSIENT, 1, Deadline(0.9))


def test_a_deadline_ends():
    now = [100.0]
    deadline = Deadline(2.5, clock=lambda: now[0])
    now[0] = 101.0
    assert deadline.left_s() == 1.5
    now[0] = 102.5
    with pytest.raises(DeadlineExceeded, match=r"2\.5 s"):
        deadline.left_s()
