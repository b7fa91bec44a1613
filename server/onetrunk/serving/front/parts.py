"""Where the time of a request goes while the front has it: waiting for a turn, collecting, and Triton.

What is left of a request's time is the front's own. With tracing, each part is a span below the request's.
"""

from __future__ import annotations

import time
from collections import Counter
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

    A request may ask several things at once. While parts of several kinds run, the time is that of the last of them in
    a request's course, and counts once however many there are, so that all parts are never longer than the request.

    Attributes:
        span: The request's span, if it is recorded.
        seconds: Part -> how long it took so far.
        running: Part -> how many of this kind have begun and not ended.
    """

    span: Span | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    running: Counter[str] = field(default_factory=Counter)
    _since: float = 0.0

    def begin(self, name: str) -> None:
        """Note that a part begins."""
        self._count()
        self.running[name] += 1
        self.seconds.setdefault(name, 0.0)

    def end(self, name: str) -> None:
        """Note that a part ends."""
        self._count()
        self.running[name] -= 1

    def _count(self) -> None:
        """Count the time since a part has begun or ended."""
        now = time.perf_counter()
        last = next((name for name in (TRITON, TURN, COLLECTING) if self.running[name]), None)
        if last is not None:
            self.seconds[last] += now - self._since
        self._since = now

    def whole(self) -> Mapping[str, float]:
        """Return the seconds of the parts if they and what is left are the whole of a request that Triton has ended.

        There is nothing to tell of a request that was refused before it reached Triton, nor of one whose client has
        hung up while Triton still works on it.
        """
        return self.seconds if TRITON in self.seconds and not self.running.total() else {}


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
        name: The part.
    """
    parts = _CURRENT.get()
    if parts is None:
        yield
        return
    span = parts.span.child(name) if parts.span is not None else None
    parts.begin(name)
    try:
        yield
    finally:
        parts.end(name)
        if span is not None:
            span.end()
