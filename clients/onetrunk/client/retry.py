"""How long a call may take, what a gRPC error means for it, and when it may send something again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from onetrunk.protocol.api_key import without_header
from onetrunk.protocol.errors import (
    BadInput,
    DeadlineExceeded,
    KeyRefused,
    NotReady,
    OneTrunkError,
    Problem,
    ServerError,
)

# The tokenizer names the row within the request: "in ensemble 'multitask', text 3: nothing to read".
ROW_MESSAGE = re.compile(r"\b(text|text_pair|input_ids|attention_mask|token_type_ids) (\d+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Deadline:
    """The end of a whole call, whatever it sends.

    Attributes:
        timeout_s: The time of the call.
        clock: The clock, in seconds.
        end: The clock's reading at which the call is over.
    """

    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    end: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.clock() + self.timeout_s)

    def left_s(self) -> float:
        """Return the seconds that are left, always more than 0.

        Raises:
            DeadlineExceeded: The time is over.
        """
        left = self.end - self.clock()
        if left <= 0:
            raise DeadlineExceeded(f"not done within {self.timeout_s:g} s")
        return left


@dataclass(frozen=True)
class Failure:
    """A request that failed.

    Attributes:
        error: The error to raise if the failure is final.
        transient: Whether the same request may succeed a little later. Requests change nothing on the server, so
            sending one again is always safe.
        stale_catalogue: Whether the server has other tasks or limits than the catalogue says.
    """

    error: OneTrunkError
    transient: bool = False
    stale_catalogue: bool = False


def doubled(first_s: float, times: int, longest_s: float) -> float:
    """Return a pause that doubles, in seconds.

    Args:
        first_s: The first pause.
        times: Which pause it is, counted from 1; before the first there is none.
        longest_s: The longest pause.
    """
    # Bounded before it is a power: 2.0 ** 1024 is more than a float holds.
    return min(first_s * 2.0 ** min(times - 1, 64), longest_s) if times > 0 else 0.0


@dataclass(frozen=True)
class RetryPolicy:
    """Pauses that double, each shortened at random by up to a half so that clients do not return all at once.

    Attributes:
        retries: How often one request may be sent again.
        others: The number of other servers. So many times, a request goes to one of them at once, and that counts as no
            retry.
        first_s: The longest first pause.
        longest_s: The longest pause.
    """

    retries: int
    others: int = 0
    first_s: float = 0.1
    longest_s: float = 2.0

    def pause_s(self, failure: Failure, tries: int, deadline: Deadline) -> float:
        """Return how long to wait before sending a request again.

        Args:
            failure: The last failure of the request.
            tries: The number of times that it has failed.
            deadline: The end of the call.

        Raises:
            OneTrunkError: The failure's own error, if another try cannot help, is one too many, or would come after
                the deadline.
        """
        retry = tries - self.others
        pause = doubled(self.first_s, retry, self.longest_s) * random.uniform(0.5, 1.0)
        if not failure.transient or retry > self.retries or pause >= deadline.end - deadline.clock():
            raise failure.error
        return pause


def classify_error(error: Any, *, url: str, timeout_s: float, rows: Sequence[int] = ()) -> Failure:
    """Read a ``grpc.RpcError`` of Triton.

    Args:
        error: The error.
        url: The server, for the message.
        timeout_s: The time of the whole call, for the message.
        rows: Row within the request -> row in the caller's list.
    """
    code, message = error.code(), error.details() or ""
    status = code.name if code is not None else "UNKNOWN"
    if code is grpc.StatusCode.UNAVAILABLE and "parsing HTTP/2" in message:
        # Another server of several may be the right one.
        fault = f"what listens at {url} speaks no gRPC, as a server's HTTP port does: give its gRPC port, often 8001"
        return Failure(ServerError(fault, status=status), transient=True)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Failure(NotReady(f"no server answers at {url}: {message}"), transient=True)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in message:
            row = rows[0] if len(rows) == 1 else None
            return Failure(BadInput([Problem(row, f"the server at {url} takes no request of this size: {message}")]))
        return Failure(NotReady(f"the server at {url} is overloaded: {message}"), transient=True)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(DeadlineExceeded(f"not done within {timeout_s:g} s"))
    if code is grpc.StatusCode.NOT_FOUND:
        # "no available versions" is a model that is being loaded or unloaded; one "not found" was never there.
        return Failure(
            NotReady(f"the server at {url} is not ready: {message}"), transient="available versions" in message
        )
    if "Stub process" in message and "not healthy" in message:
        # A model's process died. serve-repo brings it back within seconds.
        return Failure(NotReady(f"a model of the server at {url} is down: {message}"), transient=True)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        stale = "unexpected inference output" in message or "batch-size must be <=" in message
        final = ServerError(message, status=status) if stale else _bad_input(message, rows)
        return Failure(final, stale_catalogue=stale)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Failure(KeyRefused.of_call(f"{without_header(message)}: give one that it knows as api_key"))
    return Failure(ServerError(f"{message} ({status})", status=status))


def _bad_input(message: str, rows: Sequence[int]) -> BadInput:
    """Return the server's complaint, with the row counted in the caller's list."""
    match = ROW_MESSAGE.search(message)
    if match is None or int(match[2]) >= len(rows):
        return BadInput.of_call(message)
    return BadInput([Problem(rows[int(match[2])], f"{match[1]}: {match[3]}")])
