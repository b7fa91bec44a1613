"""Answers a request over HTTP under the eyes of the observer, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.errors import ErrorForm, hints, plain_error
from onetrunk.serving.front.metrics import HTTP
from onetrunk.serving.front.observer import REQUEST_ID, Observer, Record


class StreamedResponse(StreamingResponse):
    """An answer that is sent bit by bit, and observed until its end.

    Attributes:
        record: The record of its request.
        observation: What ends with the answer.
    """

    record: Record | None = None
    observation: AbstractContextManager[object] = nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and end its observation."""
        with self.observation:
            await self.stream(scope, receive, send)

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, as far as its client takes it."""
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            if self.record is not None:
                self.record.status = "499"

    def refuse(self, error: RefusedError) -> None:
        """Record that the request was refused after all."""
        if self.record is not None:
            self.record.status, self.record.reason = str(error.status), str(error)


async def observed(
    observer: Observer,
    request: Request,
    answer: Callable[[Record], Awaitable[Response]],
    errors: ErrorForm = plain_error,
) -> Response:
    """Return the answer to a request, or say in its place why there is none.

    Args:
        observer: Follows the request.
        request: The request.
        answer: Answers it.
        errors: Puts a failure into the form of the endpoint's protocol.
    """
    with ExitStack() as stack:
        record = stack.enter_context(observer.request(HTTP, f"{request.method} {request.url.path}", request.headers))
        try:
            response = await answer(record)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception as error:
            response = failure(error, errors)
            record.reason = str(error)
        if response.status_code >= 400:
            record.status = str(response.status_code)
        response.headers[REQUEST_ID] = record.request_id
        if isinstance(response, StreamedResponse):
            response.record, response.observation = record, stack.pop_all()
        return response


def failure(error: Exception, errors: ErrorForm = plain_error) -> Response:
    """Return the answer that tells of a failure, with the headers that belong to its status."""
    status, body = errors(error)
    return JSONResponse(body, status, hints(status))
