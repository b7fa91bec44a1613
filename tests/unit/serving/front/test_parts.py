"""Parts of a request that run at once: what they take together is never more than the request took."""

import pytest

from onetrunk.serving.front import parts as parts_module
from onetrunk.serving.front.parts import COLLECTING, TRITON, TURN, Parts, current_parts, part
from tests.fixtures.stand_ins import stand_in


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(parts_module, "time", stand_in(parts_module.time, perf_counter=lambda: now[0]))
    return now


def test_parts_one_after_the_other_take_what_each_took(clock):
    parts = Parts()
    with current_parts(parts):
        for name, seconds in ((TURN, 1.0), (TRITON, 2.0), (TURN, 4.0), (TRITON, 8.0)):
            clock[0] += 16.0
            with part(name):
                assert parts.whole() == {}, "one is running"
                clock[0] += seconds
    assert parts.whole() == {TURN: 5.0, TRITON: 10.0}


def test_parts_that_run_at_once_count_once_as_the_last_in_a_requests_course(clock):
    parts = Parts()
    for event, name in ((parts.begin, COLLECTING), (parts.begin, TURN), (parts.begin, TRITON), (parts.begin, TRITON)):
        event(name)
        clock[0] += 1.0
    for name in (TRITON, COLLECTING, TRITON, TURN):
        parts.end(name)
        clock[0] += 1.0
    # Of 7 seconds: 1 of collecting alone, 1 of a turn beside it, 4 of Triton, and 1 of the turn that was left.
    assert parts.whole() == {COLLECTING: 1.0, TURN: 2.0, TRITON: 4.0}
