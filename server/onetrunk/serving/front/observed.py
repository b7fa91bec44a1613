"""Answers a request over HTTP under the eyes of the observer, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from onetrunk.serving.front.errors import ErrorForm, hints, plain_error
from onetrunk.serving.front.metrics import HTTP
from onetrunk.serving.front.observer import REQUEST_ID, Observer, Record


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
    with observer.request(HTTP, f"{request.method} {request.url.path}", request.headers) as record:
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
        return response


def failure(error: Exception, errors: ErrorForm = plain_error) -> Response:
    """Return the answer that tells of a failure, with the headers that belong to its status."""
    status, body = errors(error)
    return JSONResponse(body, status, hints(status))
