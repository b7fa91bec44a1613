"""What a failure is to a client over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc.aio
from pydantic import BaseModel, ConfigDict

from onetrunk.protocol.errors import BadInput, DeadlineExceeded, NotReady, OneTrunkError, UnknownTask, UserError
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.triton import TritonDownError

log = logging.getLogger("onetrunk.serving.front")

ErrorForm = Callable[[Exception], tuple[int, dict[str, Any]]]
"""Returns the HTTP status and the body of a failure, in the form of one protocol."""


class PlainError(BaseModel):
    """Why there is no answer.

    Attributes:
        error: What was found, what is allowed, and what to do.
    """

    model_config = ConfigDict(extra="forbid")

    error: str


def plain_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body of a failure, in our own form."""
    status, message = error_body(error)
    return status, {"error": message}


def hints(status: int) -> dict[str, str] | None:
    """Return the headers that belong to the status of a failure, or None."""
    if status in (429, 503):
        return {"Retry-After": "1"}
    return {"WWW-Authenticate": "Bearer"} if status == 401 else None


def error_body(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the message of a failure. What nobody expected is logged, and not told."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    if isinstance(error, TritonDownError | NotReady):
        return 503, str(error)
    if isinstance(error, DeadlineExceeded):
        return 504, str(error)
    if isinstance(error, UnknownTask):
        return 404, str(error)
    if isinstance(error, BadInput | UserError):
        return 400, str(error)
    if isinstance(error, grpc.aio.AioRpcError):
        return 502, error.details() or error.code().name
    if isinstance(error, OneTrunkError):
        return 502, str(error)
    log.error("a request failed", exc_info=error)
    return 500, "the front failed; its log has the reason"
