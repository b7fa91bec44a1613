"""What is kept of each request: its id, metrics, a line of log if it fails, and a span of its trace."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from onetrunk.client.tracing import TRACE_HEADERS, trace_context
from onetrunk.serving.front.drift import DriftMonitor
from onetrunk.serving.front.metrics import Metrics
from onetrunk.serving.front.parts import Parts, current_parts
from onetrunk.serving.front.settings import MULTIPROCESS_FOLDER
from onetrunk.serving.front.tracer import Tracer

log = logging.getLogger("onetrunk.serving.front")

REQUEST_ID = "x-request-id"
STICKY = "x-onetrunk-key"
"""The header by which requests belong together: those of one key are answered by the same version of a head."""
READ_HEADERS = (REQUEST_ID, STICKY, *TRACE_HEADERS)
"""The headers that an observer reads."""

_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
# A server in trouble fails every request; so many lines of log in so many seconds tell enough.
_MOST_LINES, _PERIOD_S = 50, 10.0
_OWN_FAULTS = re.compile(r"5\d\d|UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|UNIMPLEMENTED|DEADLINE_EXCEEDED")


_KEY: ContextVar[str] = ContextVar("onetrunk_sticky_key", default="")


def sticky_key() -> str:
    """Return what makes the current request belong to others: its header `STICKY`, or the id that its client gave."""
    return _KEY.get()


@dataclass
class Record:
    """A request in progress.

    Attributes:
        request_id: Its id: the client's, if that sent one, or a new one.
        status: How it ended: ``ok``, an HTTP status, or the name of Triton's gRPC status.
        reason: Why it failed.
        trace: The headers that join what Triton does for it to its trace.
    """

    request_id: str
    status: str = "ok"
    reason: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)


class Observer:
    """Follows the requests of all doors.

    Attributes:
        metrics: Where requests are counted.
        drift: Where answers are compared with those on the dev data.
    """

    def __init__(self, metrics: Metrics, tracer: Tracer | None = None, *, verbose: bool = False) -> None:
        """Follow requests.

        Args:
            metrics: Where they are counted.
            tracer: Makes spans; None for none.
            verbose: Whether every request gets a line of log, or only those that the server failed.
        """
        self.metrics = metrics
        folder = os.environ.get(MULTIPROCESS_FOLDER)
        self.drift = DriftMonitor(Path(folder) if folder is not None else None)
        self._tracer = tracer
        self._verbose = verbose
        self._lines, self._lines_since = 0, float("-inf")

    @contextmanager
    def request(self, door: str, name: str, headers: Mapping[str, str]) -> Iterator[Record]:
        """Follow one request, which the block answers.

        Args:
            door: The door.
            name: What is asked, for people: a method and a path, or a gRPC method.
            headers: The request's headers, of which `READ_HEADERS` are read.
        """
        given = headers.get(REQUEST_ID, "")
        _KEY.set(headers.get(STICKY, "") or given)
        record = Record(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        record.trace = {key: headers[key] for key in TRACE_HEADERS if key in headers}
        span = self._tracer.start(name, record.trace) if self._tracer is not None else None
        if span is not None:
            record.trace = span.headers
        parts = Parts(span if span is not None and span.headers else None)
        began = time.perf_counter()
        try:
            with trace_context(record.trace), current_parts(parts):
                yield record
        except BaseException as error:
            if record.status == "ok":
                record.status, record.reason = "500", type(error).__name__
            raise
        finally:
            seconds = time.perf_counter() - began
            self.metrics.count_request(door, record.status, seconds, parts.whole())
            if span is not None:
                span.end(record.status, record.request_id)
            self._write(door, name, record, seconds)

    def _write(self, door: str, name: str, record: Record, seconds: float) -> None:
        failed = _OWN_FAULTS.fullmatch(record.status) is not None
        if not (failed or self._verbose):
            return
        now = time.monotonic()
        if now - self._lines_since > _PERIOD_S:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if failed and not self._verbose and self._lines > _MOST_LINES:
            return
        fields = {
            "request_id": record.request_id,
            "door": door,
            "request": name,
            "status": record.status,
            "ms": round(seconds * 1000, 2),
            **({"reason": record.reason} if record.reason else {}),
            **({"traceparent": record.trace["traceparent"]} if "traceparent" in record.trace else {}),
        }
        log.log(logging.ERROR if failed else logging.INFO, "request", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Formats log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_json_lines(verbose: bool) -> None:
    """Let this process log lines of JSON to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
