"""Answers to an endless input, with bounded memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from onetrunk.client.answer import Answer
from onetrunk.client.client import Client
from onetrunk.client.lines import BadLine, Line
from onetrunk.protocol.errors import BadInput

T = TypeVar("T")

# Rows of one call: enough batches to keep the server busy, few enough to hold in memory.
CHUNK_ROWS = 512


def answer_lines(
    client: Client, lines: Iterable[Line | BadLine], tasks: Sequence[str] | None
) -> Iterator[tuple[Line, Answer] | BadLine]:
    """Answers lines in order, as far as they have come in: a slow input is not waited for.

    Lines that cannot be answered come out as `BadLine`, before the answers of their chunk, and harm no other.

    Raises:
        OneTrunkError: any of `Client.predict`, except for what is wrong with a single row.
    """
    for chunk in chunks(lines, CHUNK_ROWS):
        yield from (line for line in chunk if isinstance(line, BadLine))
        good = [line for line in chunk if isinstance(line, Line)]
        while good:
            try:
                answers = client.predict([line.text for line in good], [line.pair for line in good], tasks)
            except BadInput as error:
                reasons = {problem.row: problem.message for problem in error.problems}
                if None in reasons:
                    raise
                yield from (BadLine(good[row].number, reason) for row, reason in reasons.items() if row is not None)
                good = [line for row, line in enumerate(good) if row not in reasons]
            else:
                yield from zip(good, answers, strict=True)
                break


def chunks(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Cuts an iterable into lists of what is there: at least one item, at most ``most``.

    The next items are read by a thread while the caller works on a chunk.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=most)
    stopped = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
        except Exception as error:
            put((end, error))
        else:
            put((end, None))

    # A daemon, as a read from a terminal or a pipe cannot be called back.
    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        while True:
            taken = [waiting.get()]
            while len(taken) < most and taken[-1][0] is not end:
                try:
                    taken.append(waiting.get_nowait())
                except queue.Empty:
                    break
            if items_taken := [item for item, _ in taken if item is not end]:
                yield items_taken
            last, error = taken[-1]
            if last is end:
                if error is not None:
                    raise error
                return
    finally:
        stopped.set()
