"""The door for HTTP: protocol v2 passed on, health, and metrics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

import grpc.aio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from onetrunk.client.wire import bytes_tensor, request_message
from onetrunk.protocol.api_key import AUTHORIZATION
from onetrunk.protocol.names import ADMIN_HEADER, MULTITASK, TEXT
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.body import read_body
from onetrunk.serving.front.faults import shortened
from onetrunk.serving.front.gateway import SERVICE, Gateway
from onetrunk.serving.front.metrics import outcome_of_status
from onetrunk.serving.front.observed import observed
from onetrunk.serving.front.observer import Observer, Record
from onetrunk.serving.front.questions import read_json
from onetrunk.serving.front.triton import HttpAnswer, TritonDownError

_MODEL = r"/v2/models/(?P<model>[A-Za-z0-9_.\-]{1,256})(/versions/[0-9]{1,18})?"
INFER_PATH = re.compile(rf"{_MODEL}/infer")
# Whoever may ask for answers may read these. Everything else that Triton knows changes the server.
HEALTH_PATH = re.compile(r"/v2/health/(live|ready)")
OPEN_PATH = re.compile(rf"/v2/?|/v2/models/stats|{_MODEL}(/(ready|config|stats))?")
ADMIN_PATH = re.compile(
    r"/v2/(repository/(index|models/[A-Za-z0-9_.\-]{1,256}/(load|unload))"
    r"|(system|cuda)sharedmemory(/region/[A-Za-z0-9_.\-]{1,256})?/(status|register|unregister)"
    r"|trace/setting|logging|models/[A-Za-z0-9_.\-]{1,256}/trace/setting)"
)

HEADER_LENGTH = "inference-header-content-length"
_PASSED_ON = ("content-type", "accept", "accept-encoding", HEADER_LENGTH)
# What concerns one connection only, and what the server that sends the answer sets itself.
_NOT_PASSED_BACK = {"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "server", "date"}

# An answer proves health for so long; it must come in so many seconds.
HEALTH_AGE_S, HEALTH_TIMEOUT_S = 1.0, 5.0


class HttpDoor:
    """Answers every path. Bodies are read within the limits, and passed on as they are."""

    def __init__(self, gateway: Gateway, observer: Observer, routes: Sequence[Route]) -> None:
        """Take the routes of the endpoints for plain JSON."""
        self._gateway = gateway
        self._observer = observer
        self._routes = routes
        self._health: asyncio.Task[None] | None = None
        self._healthy_at = float("-inf")

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/healthz", self.healthz),
                Route("/metrics", self.metrics),
                *self._routes,
                Route("/v2{path:path}", self.protocol_v2, methods=["GET", "POST"]),
            ],
            exception_handlers={404: _not_found, 405: _other_method, 500: _failed},
        )

    def metrics_app(self) -> Starlette:
        """Return an application with the metrics only, for a port of their own."""
        return Starlette(routes=[Route("/metrics", self.metrics)])

    async def healthz(self, request: Request) -> Response:
        """Say whether every task answers: an answer, not a claim."""
        if time.monotonic() - self._healthy_at > HEALTH_AGE_S:
            if self._health is None or self._health.done():
                self._health = asyncio.create_task(self._ask_all())
            try:
                await asyncio.wait_for(asyncio.shield(self._health), HEALTH_TIMEOUT_S)
            except asyncio.TimeoutError:
                return JSONResponse({"ready": False, "reason": f"no answer in {HEALTH_TIMEOUT_S:g} s"}, 503)
            except (TritonDownError, grpc.aio.AioRpcError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                return JSONResponse({"ready": False, "reason": reason}, 503)
        return JSONResponse({"ready": True})

    async def _ask_all(self) -> None:
        message = request_message(MULTITASK, [bytes_tensor(TEXT, [b"Ready?"])], outputs=())
        await self._gateway.call(f"{SERVICE}ModelInfer", message.SerializeToString())
        self._healthy_at = time.monotonic()

    async def metrics(self, request: Request) -> Response:
        """Return the front's metrics, and Triton's behind them."""
        own = self._observer.metrics.text() + self._observer.drift.text(self._gateway.last_tasks)
        try:
            tritons = await self._gateway.triton.uncancelled(self._gateway.triton.metrics())
        except TritonDownError:
            tritons = b""
        return Response(own + tritons, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def protocol_v2(self, request: Request) -> Response:
        """Pass a request of protocol v2 on to Triton."""
        return await observed(self._observer, request, lambda record: self._chosen(request, request.url.path, record))

    async def _chosen(self, request: Request, path: str, record: Record) -> Response:
        if HEALTH_PATH.fullmatch(path) is not None and request.method in ("GET", "HEAD"):
            return await self._pass(request, path)
        self._gateway.check_key(request.headers.get(AUTHORIZATION), request.headers.get(ADMIN_HEADER))
        if (infer := INFER_PATH.fullmatch(path)) is not None and request.method == "POST":
            return await self._infer(request, path, infer["model"], record)
        if OPEN_PATH.fullmatch(path) is not None and request.method in ("GET", "HEAD"):
            return await self._pass(request, path)
        if ADMIN_PATH.fullmatch(path) is not None and request.method != "HEAD":
            return await self._administer(request, path)
        return await _not_found(request, None)

    async def _infer(self, request: Request, path: str, model: str, record: Record) -> Response:
        body = await read_body(request, self._gateway.admission, self._gateway.settings.limits)
        length = request.headers.get(HEADER_LENGTH)
        if length is not None and not re.fullmatch(r"\d{1,12}", length):
            raise RefusedError(
                400, f"Inference-Header-Content-Length is {length[:40]!r}, and must be a number of bytes"
            )
        limits = self._gateway.settings.limits
        question = read_json(model, body, int(length) if length is not None else None, limits)
        headers = {**_passed_on(request), **record.trace}
        with self._observer.metrics.asked(dict.fromkeys(self._gateway.known_tasks(question), question.rows)) as ended:
            await self._gateway.check(question)
            found = await self._gateway.infer(len(body), lambda: self._gateway.triton.ask("POST", path, headers, body))
            ended.value = outcome_of_status(found.status)
        return _response(found)

    async def _pass(self, request: Request, path: str) -> Response:
        return _response(await self._gateway.ask("GET", path, _passed_on(request), b""))

    async def _administer(self, request: Request, path: str) -> Response:
        if not self._gateway.is_admin(request.headers.get(ADMIN_HEADER)):
            return JSONResponse({"error": f"this API is restricted, expecting the admin key in '{ADMIN_HEADER}'"}, 403)
        body = await read_body(request, self._gateway.admission, self._gateway.settings.limits)
        return _response(await self._gateway.ask(request.method, path, _passed_on(request), body))


def _passed_on(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in _PASSED_ON if name in request.headers}


def _response(found: HttpAnswer) -> Response:
    headers = {name: value for name, value in found.headers.items() if name.lower() not in _NOT_PASSED_BACK}
    return Response(found.body, found.status, headers)


async def _not_found(request: Request, error: Any) -> Response:
    message = f"{request.method} {request.url.path[:200]}: there is nothing here"
    return JSONResponse({"error": message}, 404)


async def _other_method(request: Request, error: Any) -> Response:
    # Of protocol v2, which paths there are depends on the method.
    if request.url.path.startswith("/v2"):
        return await _not_found(request, error)
    allowed = sorted(error.headers["Allow"].split(", "))
    asked = f"{shortened(request.method)} {shortened(request.url.path)}"
    message = f"{asked}: this path takes another method; send {allowed[0]}"
    return JSONResponse({"error": message}, 405, {"Allow": ", ".join(allowed)})


async def _failed(request: Request, error: Any) -> Response:
    return JSONResponse({"error": "the front failed; its log has the reason"}, 500)
