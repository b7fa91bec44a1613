"""One trace of a request: the front's span, and below it Triton's for the tokenizer, the trunk and the heads."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from onetrunk.client import Client
from onetrunk.client.tracing import trace_context
from onetrunk.serving import Server
from onetrunk.serving.front.settings import Tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra tracing is not installed")

PARENT = "b7ad6b7169203331"
WANTED = {"tokenizer", "trunk_00_01", "head_mood", "multitask"}
# Triton sends its spans once: what is lost on the way, as on a machine that is busy, never comes. So it is asked again.
ATTEMPTS, SECONDS = 3, 30


@pytest.fixture
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OTLP endpoint, and the spans that came to it so far."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[dict[str, Any]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "json" in self.headers["Content-Type"]:  # Triton
                sent = json.loads(body)
            else:  # the front
                message = ExportTraceServiceRequest.FromString(body)
                for resource in message.resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            spans.append(
                                {
                                    "name": span.name,
                                    "traceId": span.trace_id.hex(),
                                    "spanId": span.span_id.hex(),
                                    "parentSpanId": span.parent_span_id.hex(),
                                    "attributes": json_format.MessageToDict(span).get("attributes", []),
                                }
                            )
                sent = {}
            for resource in sent.get("resourceSpans", []):
                for scope in resource["scopeSpans"]:
                    spans.extend(scope["spans"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()


def test_one_trace_shows_front_tokenizer_trunk_and_head(
    handmade_repository: Path, collector: tuple[str, list[dict[str, Any]]]
) -> None:
    url, spans = collector
    tracing = Tracing(url=url, share=0.0)
    with Server(
        handmade_repository, http_port=0, grpc_port=0, metrics_port=0, tracing=tracing, probe_interval_s=None
    ) as server:
        asked: set[str] = set()
        for attempt in range(ATTEMPTS):
            traces = {
                kind: f"{attempt}{place}f7651916cd43dd8448eb211c80319c" for place, kind in enumerate(("json", "grpc"))
            }
            asked |= set(traces.values())
            _ask(server, traces)
            if _arrived(spans, traces):
                break
    by_trace = {trace: [span for span in spans if span["traceId"] == trace] for trace in traces.values()}
    wanted = {trace: sorted(WANTED - {span["name"] for span in found}) for trace, found in by_trace.items()}
    assert not any(wanted.values()), wanted
    assert {span["traceId"] for span in spans} <= asked, "none of a request without a trace: the share is 0"
    for trace, name in ((traces["json"], "POST /v1/predict"), (traces["grpc"], "ModelInfer")):
        (front,) = [span for span in by_trace[trace] if name in span["name"]]
        assert front["parentSpanId"] == PARENT
        (ensemble,) = [
            span
            for span in by_trace[trace]
            if span["name"] in ("InferRequest", "multitask") and span.get("parentSpanId") == front["spanId"]
        ]
        assert ensemble
        below = {span["name"] for span in by_trace[trace] if span.get("parentSpanId") == front["spanId"]}
        own = {"turn", "collecting", "triton"} if trace == traces["json"] else {"turn", "triton"}
        assert below & {"turn", "collecting", "triton"} == own
    (front,) = [span for span in by_trace[traces["json"]] if span["name"] == "POST /v1/predict"]
    assert {"key": "onetrunk.request_id", "value": {"stringValue": "my-request"}} in front["attributes"]


def _ask(server: Server, traces: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://{server.http_url}/v1/predict",
        data=json.dumps({"texts": "a good day", "tasks": ["mood"]}).encode(),
        headers={"traceparent": f"00-{traces['json']}-{PARENT}-01", "X-Request-Id": "my-request"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["x-request-id"] == "my-request"
    with Client(server.grpc_url) as client:
        with trace_context({"traceparent": f"00-{traces['grpc']}-{PARENT}-01"}):
            client.predict("a good day", tasks=["mood"])
        client.predict("another", tasks=["mood"])  # without a trace


def _arrived(spans: list[dict[str, Any]], traces: dict[str, str]) -> bool:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if all({span["name"] for span in spans if span["traceId"] == trace} >= WANTED for trace in traces.values()):
            return True
        time.sleep(0.2)
    return False
