"""Where the time of a request goes while the front has it: waiting for a turn, collecting, and Triton.

What is left of a request's time is the front's own. With tracing, each part is a span below the request's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from onetrunk.serving.front.tracer import Span

TURN, COLLECTING, TRITON = "turn", "collecting", "triton"
OWN = "own"
"""What is left."""


@dataclass
class Parts:
    """The parts of one request.

    Attributes:
        span: The request's span, if it is recorded.
        seconds: Part -> how long it took so far.
        running: The number of parts that have begun and not ended.
    """

    span: Span | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    running: int = 0

    def whole(self) -> Mapping[str, float]:
        """Return the seconds of the parts if they and what is left are the whole of a request that Triton has ended.

        There is nothing to tell of a request that was refused before it reached Triton, nor of one whose client has
        hung up while Triton still works on it.
        """
        return self.seconds if TRITON in self.seconds and not self.running else {}


_CURRENT: ContextVar[Parts | None] = ContextVar("onetrunk_parts", default=None)


@contextmanager
def current_parts(parts: Parts | None) -> Iterator[None]:
    """Note the parts of a request, which the block answers.

    Args:
        parts: Where they are noted; None for what a request has started aside.
    """
    token = _CURRENT.set(parts)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Count the time of the block as a part of the current request, also in a task that the request has started.

    Args:
        name: The part. Only one of them may run at a time.
    """
    parts = _CURRENT.get()
    if parts is None:
        yield
        return
    span = parts.span.child(name) if parts.span is not None else None
    parts.running += 1
    began = time.perf_counter()
    try:
        yield
    finally:
        parts.running -= 1
        parts.seconds[name] = parts.seconds.get(name, 0.0) + time.perf_counter() - began
        if span is not None:
            span.end()
