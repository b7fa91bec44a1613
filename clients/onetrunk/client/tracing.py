"""W3C trace context: the headers by which what a server does for a request becomes a part of the caller's trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

TRACE_HEADERS = ("traceparent", "tracestate")

_CURRENT: ContextVar[Mapping[str, str]] = ContextVar("onetrunk_trace", default=MappingProxyType({}))


@contextmanager
def trace_context(headers: Mapping[str, str]) -> Iterator[None]:
    """Let the clients send these headers with every request of the block.

    Args:
        headers: ``traceparent``, and perhaps ``tracestate``, as the propagator of an OpenTelemetry SDK injects them.

    Example:
        >>> with trace_context({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}):
        ...     trace_headers()
        (('traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'),)
    """
    token = _CURRENT.set(headers)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return the headers of the current context, as gRPC's metadata."""
    return tuple(_CURRENT.get().items())
