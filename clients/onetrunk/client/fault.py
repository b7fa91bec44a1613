"""What a gRPC error of Triton means for the caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from onetrunk.protocol.errors import BadInput, DeadlineExceeded, NotReady, OneTrunkError, Problem, ServerError

# The tokenizer names the row within the request: "in ensemble 'multitask', text 3: nothing to read".
ROW_MESSAGE = re.compile(r"\b(text|text_pair|input_ids|attention_mask|token_type_ids) (\d+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """A failed request.

    Attributes:
        error: what the caller is told if it stays.
        passing: whether the same request may succeed a little later. Requests change nothing on the server,
            so sending one again is always safe.
        outdated: whether the server now has other tasks or limits than the catalogue says.
    """

    error: OneTrunkError
    passing: bool = False
    outdated: bool = False


def read_fault(error: Any, *, url: str, timeout_s: float, rows: Sequence[int] = ()) -> Fault:
    """Reads a ``grpc.RpcError``.

    Args:
        error: what the call raised.
        url: of the server, for the message.
        timeout_s: of the whole call, for the message.
        rows: row within the request -> row in the caller's list.
    """
    code, message = error.code(), error.details() or ""
    status = code.name if code is not None else "UNKNOWN"
    if code is grpc.StatusCode.UNAVAILABLE:
        return Fault(NotReady(f"no server answers at {url}: {message}"), passing=True)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Fault(DeadlineExceeded(f"not done within {timeout_s:g} s"))
    if code is grpc.StatusCode.NOT_FOUND:
        # "no available versions" is a model on its way in or out; "not found" was never there.
        return Fault(NotReady(f"the server at {url} is not ready: {message}"), passing="available versions" in message)
    if "Stub process" in message and "not healthy" in message:
        # A model process died. serve-repo brings it back within seconds.
        return Fault(NotReady(f"a model of the server at {url} is down: {message}"), passing=True)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        outdated = "unexpected inference output" in message or "batch-size must be <=" in message
        return Fault(ServerError(message, status=status) if outdated else _bad_input(message, rows), outdated=outdated)
    return Fault(ServerError(f"{message} ({status})", status=status))


def _bad_input(message: str, rows: Sequence[int]) -> BadInput:
    """The server's complaint, with the row counted in the caller's list."""
    match = ROW_MESSAGE.search(message)
    if match is None or int(match[2]) >= len(rows):
        return BadInput([Problem(None, message)])
    return BadInput([Problem(rows[int(match[2])], f"{match[1]}: {match[3]}")])
