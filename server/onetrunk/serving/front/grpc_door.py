"""The door for gRPC: protocol v2 as KServe and Triton define it, passed on message by message."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from onetrunk.protocol.address import join_address
from onetrunk.protocol.api_key import AUTHORIZATION
from onetrunk.protocol.names import ADMIN_GRPC_HEADER, DRIFT_METHOD, ENSEMBLES, TRIALS_METHOD
from onetrunk.serving.front.admission import RefusedError, UnauthorizedError
from onetrunk.serving.front.gateway import SERVICE, Gateway
from onetrunk.serving.front.grpc_calls import MOST_SILENT, MOST_UNTAKEN, Context, SilentCalls, UntakenAnswers
from onetrunk.serving.front.metrics import GRPC
from onetrunk.serving.front.observer import READ_HEADERS, Observer, Record
from onetrunk.serving.front.questions import MAX_ID_CHARACTERS, Question, check_fields, read_message
from onetrunk.serving.front.settings import FrontSettings, Limits, port_taken
from onetrunk.serving.front.trials import Trials
from onetrunk.serving.front.triton import TritonDownError

INFER = f"{SERVICE}ModelInfer"
STREAM = f"{SERVICE}ModelStreamInfer"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
# A ``HealthCheckResponse`` with a status: one field, a number.
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
# How often Triton is asked for those who watch, and how many of these there may be: each holds a call open.
WATCH_EVERY_S, MOST_WATCHERS = 1.0, 32
# Whoever may ask for answers may call these. Everything else that Triton knows changes the server.
OPEN = {
    *(
        f"{SERVICE}{name}"
        for name in (
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
        )
    ),
    CHECK,
}
ADMIN = {
    f"{SERVICE}{name}"
    for name in (
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    )
}
# The requests of one stream that are worked on at a time. Their answers keep the order.
STREAM_DEPTH = 8
# How long a connection that has reached its age is left to its requests.
AGE_GRACE_MS = 60_000
# How long a connection without a call is left open. Its client connects again when it needs to.
IDLE_MS = 300_000

# What answers without an API key.
PUBLIC = {f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", CHECK, WATCH}

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# What a request may end with, by no fault of the front.
_FAILURES = (RefusedError, TritonDownError, grpc.aio.AioRpcError)

_READ = {*READ_HEADERS, ADMIN_GRPC_HEADER, AUTHORIZATION}

Metadata = dict[str, Any]
"""The headers of a call that are read."""


class GrpcDoor(grpc.GenericRpcHandler):
    """Answers every method of the service. Messages stay bytes, apart from those that are checked."""

    def __init__(self, gateway: Gateway, observer: Observer, trials: Trials) -> None:
        self._gateway = gateway
        self._observer = observer
        self._trials = trials
        self._silent = SilentCalls()
        self._untaken = UntakenAnswers(gateway.settings.grpc_port)
        self._watchers = 0

    def service(self, details: Any) -> Any:
        """Return the handler of a method."""
        method = details.method
        # Read now: in the context of a call that has ended, gRPC frees the metadata, and returns other memory.
        metadata = {key: value for key, value in details.invocation_metadata or () if key in _READ}
        if method not in PUBLIC:
            try:
                self._gateway.check_key(metadata.get(AUTHORIZATION), metadata.get(ADMIN_GRPC_HEADER))
            except UnauthorizedError as error:
                return grpc.stream_stream_rpc_method_handler(partial(self._refuse, method, metadata, error))
        if method == DRIFT_METHOD:
            return self._unary(partial(self._drift, metadata))
        if method == TRIALS_METHOD:
            return self._unary(partial(self._tell_trials, metadata))
        if method == INFER:
            return self._unary(partial(self._infer, metadata))
        if method == WATCH:
            return grpc.stream_stream_rpc_method_handler(self._watch)
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, metadata))
        if method in OPEN:
            return self._unary(partial(self._pass, method, metadata))
        if method in ADMIN:
            return self._unary(partial(self._administer, method, metadata))
        return grpc.stream_stream_rpc_method_handler(self._unknown)

    def _unary(self, answer: Callable[[bytes, Context], Awaitable[bytes]]) -> Any:
        """Return the handler of a method with one request.

        To gRPC it is a stream of one, since otherwise gRPC itself would wait for the request, for ever.
        """

        async def read_and_answer(_: AsyncIterator[bytes], context: Context) -> bytes:
            self._untaken.watch(context)
            request = None
            try:
                request = await self._silent.next_of(context, self._gateway.settings.limits.body_timeout_s)
            except RefusedError as error:
                await self._abort(context, _STATUS[error.status], str(error))
            except TimeoutError:
                await self._abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come in time")
            if request is None:
                await self._abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
            return await answer(request, context)

        return grpc.stream_unary_rpc_method_handler(read_and_answer)

    async def _abort(self, context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
        """End a call, by an exception."""
        self._untaken.watch(context)
        self._untaken.add(context)
        await context.abort(code, reason)
        raise AssertionError("abort does not return")

    async def _unknown(self, _: AsyncIterator[bytes], context: Context) -> None:
        await self._abort(context, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    async def _refuse(
        self, method: str, metadata: Metadata, error: RefusedError, _: AsyncIterator[bytes], context: Context
    ) -> None:
        with self._observer.request(GRPC, method, metadata) as record:
            record.status = str(error.status)
            await self._abort(context, _STATUS[error.status], str(error))

    async def _infer(self, metadata: Metadata, request: bytes, context: Context) -> bytes:
        with self._observer.request(GRPC, INFER, metadata) as record:
            return await self._answer(context, record, lambda: self._send(record, request))

    async def _send(self, record: Record, request: bytes) -> bytes:
        gateway = self._gateway
        with gateway.admission.holding(len(request)):
            question = _question(request, gateway.settings.limits)
        trace = tuple(record.trace.items())
        with self._observer.metrics.asked(dict.fromkeys(gateway.known_tasks(question), question.rows)):
            await gateway.check(question)
            tried = self._trials.ask_message(question, request)
            answer = await gateway.infer(len(request), lambda: gateway.triton.call(INFER, request, trace))
        if question.model in ENSEMBLES:
            self._observer.drift.note_response(answer, question)
        return await self._trials.message(answer, tried)

    async def _drift(self, metadata: Metadata, request: bytes, context: Context) -> bytes:
        """Return task -> drift as JSON."""

        async def tell() -> bytes:
            # Not the last tasks: a worker that was asked nothing yet may know none.
            drifts = self._observer.drift.drifts((await self._gateway.catalogue()).tasks)
            return json.dumps({name: drift.model_dump(mode="json") for name, drift in drifts.items()}).encode()

        with self._observer.request(GRPC, DRIFT_METHOD, metadata) as record:
            return await self._answer(context, record, tell)

    async def _tell_trials(self, metadata: Metadata, request: bytes, context: Context) -> bytes:
        """Return task -> how its candidate does, as JSON."""

        async def tell() -> bytes:
            reports = self._trials.reports()
            return json.dumps({name: report.model_dump(mode="json") for name, report in reports.items()}).encode()

        with self._observer.request(GRPC, TRIALS_METHOD, metadata) as record:
            return await self._answer(context, record, tell)

    async def _pass(self, method: str, metadata: Metadata, request: bytes, context: Context) -> bytes:
        with self._observer.request(GRPC, method, metadata) as record:
            return await self._answer(context, record, lambda: self._gateway.call(method, request))

    async def _administer(self, method: str, metadata: Metadata, request: bytes, context: Context) -> bytes:
        with self._observer.request(GRPC, method, metadata) as record:
            if not self._gateway.is_admin(metadata.get(ADMIN_GRPC_HEADER)):
                record.status = "403"
                await self._abort(
                    context,
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"this protocol is restricted, expecting the admin key in the header '{ADMIN_GRPC_HEADER}'",
                )
            return await self._answer(context, record, lambda: self._gateway.call(method, request))

    async def _watch(self, _: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Tell a client the health of a service now, and whenever it changes, until the client hangs up.

        These calls are not counted: they last for as long as a client likes.
        """
        if self._watchers >= MOST_WATCHERS:
            await self._abort(context, _STATUS[429], f"{MOST_WATCHERS} clients watch already: call Check instead")
        self._watchers += 1
        self._untaken.watch(context)
        try:
            request = await self._silent.next_of(context, self._gateway.settings.limits.body_timeout_s)
            told = None
            while request is not None:
                if (found := await self._health(request)) != told:
                    told = found
                    self._untaken.add(context, len(found))
                    yield found
                    self._untaken.taken(context, len(found))
                await asyncio.sleep(WATCH_EVERY_S)
        except RefusedError as error:
            await self._abort(context, _STATUS[error.status], str(error))
        except TimeoutError:
            await self._abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come in time")
        finally:
            self._watchers -= 1

    async def _health(self, request: bytes) -> bytes:
        """Return a ``HealthCheckResponse``: Triton's answer to a check, and what stands for none."""
        try:
            return await self._gateway.call(CHECK, request)
        except grpc.aio.AioRpcError as error:
            return SERVICE_UNKNOWN if error.code() is grpc.StatusCode.NOT_FOUND else NOT_SERVING
        except TritonDownError:
            return NOT_SERVING

    async def _answer(self, context: Context, record: Record, send: Callable[[], Awaitable[bytes]]) -> bytes:
        """Send a request, and end the call with the right status if it fails."""
        try:
            found = await send()
            self._untaken.add(context, len(found))
            return found
        except _FAILURES as error:
            await self._abort(context, _note(record, error), record.reason)
        except asyncio.CancelledError:
            record.status = "499"
            raise

    async def _stream(self, metadata: Metadata, _: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Answer the requests of a stream one by one. Triton itself never sees the stream, which could be cancelled."""
        pending: asyncio.Queue[asyncio.Task[tuple[bytes, int]] | None] = asyncio.Queue(STREAM_DEPTH)

        async def read() -> None:
            try:
                while (request := await self._silent.next_of(context)) is not None:
                    await pending.put(asyncio.create_task(self._stream_answer(metadata, request, context)))
            except RefusedError as error:
                refused.append(error)
            await pending.put(None)

        refused: list[RefusedError] = []
        self._untaken.watch(context)
        reader = asyncio.create_task(read())
        try:
            while (task := await pending.get()) is not None:
                answer, counted = await task
                yield answer
                self._untaken.taken(context, counted)
        finally:
            reader.cancel()
        if refused:
            await self._abort(context, _STATUS[refused[0].status], str(refused[0]))
        self._untaken.add(context)

    async def _stream_answer(self, metadata: Metadata, request: bytes, context: Context) -> tuple[bytes, int]:
        """Return a serialized ``ModelStreamInferResponse``, in which an error is a message as well, and what it counts.

        It waits for its client from now on, also if others of the stream come first.
        """
        found = b""
        with self._observer.request(GRPC, STREAM, metadata) as record:
            try:
                found = await self._send(record, request)
                self._untaken.add(context, len(found))
            except _FAILURES as error:
                found = b""
                self._untaken.add(context)
                _note(record, error)
            except asyncio.CancelledError:
                record.status = "499"
                raise
        response = service_pb2.ModelStreamInferResponse(error_message=record.reason)
        if record.reason:
            # As Triton does it: the client finds the request by its id.
            with contextlib.suppress(DecodeError):
                name = service_pb2.ModelInferRequest.FromString(request).id
                response.infer_response.id = name if len(name) <= MAX_ID_CHARACTERS else ""
        else:
            response.infer_response.ParseFromString(found)
        answer: bytes = response.SerializeToString()
        return answer, len(found)


def _note(record: Record, error: Exception) -> grpc.StatusCode:
    """Note how a request failed, and return the status that its client gets."""
    if isinstance(error, RefusedError):
        record.status, record.reason = str(error.status), str(error)
        return _STATUS[error.status]
    if isinstance(error, grpc.aio.AioRpcError):
        record.status, record.reason = error.code().name, error.details() or ""
        return error.code()
    record.status, record.reason = "503", str(error)
    return grpc.StatusCode.UNAVAILABLE


def _question(request: bytes, limits: Limits) -> Question:
    """Read a request. The message, which is a second copy of it, is not kept while the request waits."""
    check_fields(request)
    try:
        return read_message(service_pb2.ModelInferRequest.FromString(request), limits)
    except DecodeError:
        raise RefusedError(400, "the request is not a ModelInferRequest") from None


def open_grpc_door(gateway: Gateway, observer: Observer, trials: Trials) -> grpc.aio.Server:
    """Return a gRPC server that listens once it is started.

    Raises:
        OSError: The port is in use.
    """
    settings = gateway.settings
    limits = settings.limits
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", int(settings.share_ports)),
            # gRPC refuses larger messages before they reach Python, and stops to decompress one when it becomes larger.
            ("grpc.max_receive_message_length", limits.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.server_handshake_timeout_ms", 10_000),
            # Clients of several servers ask every ten seconds whether one that works for long is still there.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            # A connection over which nothing is asked takes a place, and one whose client has vanished for ever.
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            *_age(limits.max_connection_age_s),
        ),
        handlers=(GrpcDoor(gateway, observer, trials),),
        # Those that wait for their clients take no place of the others. Some room is left for calls that ask no model.
        maximum_concurrent_rpcs=limits.max_in_flight + limits.max_waiting + MOST_SILENT + MOST_UNTAKEN + 64,
    )
    address = join_address(settings.host, settings.grpc_port)
    try:
        if settings.tls is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, _credentials(settings))
    except RuntimeError:
        raise port_taken(settings.grpc_port) from None
    return server


def _is_news(record: logging.LogRecord) -> bool:
    """Whether an error of gRPC's own is worth a line. An answer whose client is gone is not."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


def _age(seconds: float) -> tuple[tuple[str, int], ...]:
    """Return the options that let a connection end after its age; gRPC changes that by a tenth at random."""
    if not seconds:
        return ()
    # Its requests have the time to be answered in: those of a stream that never ends do not hold it open.
    return (("grpc.max_connection_age_ms", int(seconds * 1000)), ("grpc.max_connection_age_grace_ms", AGE_GRACE_MS))


def _credentials(settings: FrontSettings) -> Any:
    tls = settings.tls
    assert tls is not None
    authority = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())], authority, require_client_auth=authority is not None
    )
