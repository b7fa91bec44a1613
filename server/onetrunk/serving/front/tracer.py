"""Spans of requests, sent to an OpenTelemetry collector over OTLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.settings import Tracing

INSTALL = "pip install 'onetrunk[tracing]'"


class Span:
    """The span of one request.

    Attributes:
        headers: The headers that make what Triton does for it children of this span; empty if it is not recorded.
    """

    def __init__(self, span: Any, headers: Mapping[str, str], start_child: Callable[[str], Any]) -> None:
        self._span = span
        self._start_child = start_child
        self.headers = headers

    def child(self, name: str) -> Any:
        """Start the span of a part of the request. It must be ended.

        Args:
            name: The part.
        """
        return self._start_child(name)

    def end(self, status: str, request_id: str) -> None:
        """End the span."""
        self._span.set_attribute("onetrunk.status", status)
        self._span.set_attribute("onetrunk.request_id", request_id)
        self._span.end()


class Tracer:
    """Starts spans. Those of a sampled trace, and a share of the others, are recorded and sent."""

    def __init__(self, tracing: Tracing) -> None:
        """Prepare the exporter, which sends in a thread of its own.

        Raises:
            UserError: The packages of OpenTelemetry are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise UserError(f"--trace-url needs the packages of OpenTelemetry: {INSTALL}") from None
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "onetrunk-front"}),
            sampler=ParentBased(TraceIdRatioBased(tracing.share)),
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=tracing.url, timeout=5)))
        self._tracer = self._provider.get_tracer("onetrunk.serving.front")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._kind = SpanKind.SERVER

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """Start the span of a request.

        Args:
            name: What is asked.
            headers: The request's trace headers.
        """
        parent = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(name, context=parent, kind=self._kind)
        carrier: dict[str, str] = {}
        context = self._in_context(span)
        if span.is_recording():
            self._propagator.inject(carrier, context=context)
        return Span(span, carrier, partial(self._tracer.start_span, context=context))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
