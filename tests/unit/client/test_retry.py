"""Deadlines, pauses before retries, and the meaning of each of Triton's statuses and messages (of release 24.10)."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import pytest

from onetrunk.client.retry import Deadline, Failure, RetryPolicy, classify_error
from onetrunk.protocol.errors import BadInput, DeadlineExceeded, NotReady, ServerError

TRANSIENT = Failure(NotReady("down"), transient=True)


def test_pauses_double_up_to_the_longest():
    policy = RetryPolicy(retries=5000, first_s=0.1, longest_s=2.0)
    deadline = Deadline(1000.0)
    for tries, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (6, 2.0), (20, 2.0), (5000, 2.0)):
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


Code = grpc.StatusCode


@dataclass
class RpcError:
    status: grpc.StatusCode
    message: str

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return self.message


@pytest.mark.parametrize(
    ("code", "message", "error", "transient", "stale"),
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses; Connection refused", NotReady, True, False),
        (Code.UNAVAILABLE, "Stream removed (Socket closed)", NotReady, True, False),
        (
            Code.UNAVAILABLE,
            "last error: UNAVAILABLE: ipv4:127.0.0.1:1: Failed parsing HTTP/2 (Expected SETTINGS frame)",
            ServerError,
            True,
            False,
        ),
        (Code.INTERNAL, "in ensemble 'multitask', Stub process 'head_x_0_0' is not healthy.", NotReady, True, False),
        (Code.NOT_FOUND, "Request for unknown model: 'multitask' has no available versions", NotReady, True, False),
        (Code.NOT_FOUND, "Request for unknown model: 'multitask' is not found", NotReady, False, False),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, False, False),
        (Code.INVALID_ARGUMENT, "unexpected inference output 'x' for model 'multitask'", ServerError, False, True),
        (
            Code.INVALID_ARGUMENT,
            "[request id: <id_unknown>] inference request batch-size must be <= 32 for 'multitask'",
            ServerError,
            False,
            True,
        ),
        (Code.INVALID_ARGUMENT, "in ensemble 'multitask', text 1: nothing to read", BadInput, False, False),
        (Code.INTERNAL, "in ensemble 'multitask', onnx runtime error 6", ServerError, False, False),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max", BadInput, False, False),
        (Code.RESOURCE_EXHAUSTED, "too many requests at a time: 64 are in flight", NotReady, True, False),
    ],
)
def test_every_status_has_its_meaning(code, message, error, transient, stale):
    failure = classify_error(RpcError(code, message), url="host:1", timeout_s=3, rows=(5, 6))
    assert type(failure.error) is error
    assert (failure.transient, failure.stale_catalogue) == (transient, stale)


@pytest.mark.parametrize(
    ("message", "row", "said"),
    [
        ("in ensemble 'multitask', text 1: nothing to read", 7, "text: nothing to read"),
        ("text_pair 0: not UTF-8\nat byte 3", 9, "text_pair: not UTF-8\nat byte 3"),
        ("input_ids 2: 30522 is out of range", None, "input_ids 2: 30522 is out of range"),
        ("something else", None, "something else"),
    ],
)
def test_a_row_of_the_request_becomes_a_row_of_the_caller(message, row, said):
    failure = classify_error(RpcError(Code.INVALID_ARGUMENT, message), url="host:1", timeout_s=3, rows=(9, 7))
    assert isinstance(failure.error, BadInput)
    assert [(problem.row, problem.message) for problem in failure.error.problems] == [(row, said)]
