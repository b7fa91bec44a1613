"""What a failure is to a client over HTTP."""

from __future__ import annotations

import logging

import grpc.aio

from onetrunk.protocol.errors import BadInput, DeadlineExceeded, NotReady, OneTrunkError, UnknownTask, UserError
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.triton import TritonDownError

log = logging.getLogger("onetrunk.front")


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
