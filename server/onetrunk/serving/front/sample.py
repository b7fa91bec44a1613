"""A bounded, uniform sample of the texts that are asked, in a file of JSON lines, for people who label them.

Every text gets a random key, and of each task those with the smallest keys are kept. That is a reservoir: whatever has
been seen, each text of it is in the sample with the same probability. Samples of several processes, and that of the
file, are merged by keeping the smallest keys of all.

Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", with equal weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from onetrunk.client.answer import Answer
from onetrunk.client.readers import EmbeddingPrediction
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular
from onetrunk.serving.front.settings import MIB, Sampling

log = logging.getLogger("onetrunk.serving.front")

WRITE_EVERY_S = 15.0
# No trunk reads so much of a text.
MOST_TEXT_BYTES = 4000
# The file is read whole by each process that adds to it, and has a place in its memory beside all requests.
MOST_FILE_BYTES = 64 * MIB
MOST_NOTED_BYTES = 8 * MIB
# What a line takes in memory beside its texts.
_LINE_BYTES = 1000
# How long another process may hold the file before this one gives up until the next time.
LOCK_S = 3.0

Lines = dict[str, list[dict[str, Any]]]
"""Task -> the lines of the sample about it."""


@dataclass
class _Noted:
    """What was noted since the last write.

    Attributes:
        seen: Task -> the number of texts.
        lines: The lines that may get into the sample.
        most: Task -> the greatest key that was not dropped here; absent if none was.
        size_bytes: The memory that the lines take, roughly.
    """

    seen: Counter[str] = field(default_factory=Counter)
    lines: Lines = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, line: dict[str, Any], size: int) -> None:
        """Add a line, of a sample of so many lines a task."""
        found = self.lines.setdefault(line["task"], [])
        found.append(line)
        self.size_bytes += _bytes_of(line)
        if len(found) >= 2 * size:
            self._keep_smallest(line["task"], size)
        if self.size_bytes > MOST_NOTED_BYTES:
            for task, lines in self.lines.items():
                self._keep_smallest(task, -(-len(lines) // 2))

    def add_back(self, earlier: _Noted, size: int) -> None:
        """Add what was noted earlier and could not be written."""
        self.seen.update(earlier.seen)
        for task, most in earlier.most.items():
            self.most[task] = min(most, self.most.get(task, 1.0))
        for task, lines in earlier.lines.items():
            for line in lines:
                if line["key"] <= self.most.get(task, 1.0):
                    self.add(line, size)

    def _keep_smallest(self, task: str, count: int) -> None:
        lines = self.lines[task]
        self.lines[task] = kept = _smallest(lines, count)
        self.size_bytes += sum(map(_bytes_of, kept)) - sum(map(_bytes_of, lines))
        self.most[task] = min(kept[-1]["key"], self.most.get(task, 1.0))


class Sample:
    """The part of the sample that one process adds.

    The file is read and written only by `write`, so that a file in trouble is in nobody's way: what is noted meanwhile
    is kept, within bounds, until it can be written. `check_sample` tells trouble before a server starts.
    """

    def __init__(self, sampling: Sampling, draw: Callable[[], float] = random.random) -> None:
        """Continue the sample in the file, or begin one.

        Args:
            sampling: Where, and how much.
            draw: Draws numbers from 0 to 1.
        """
        self._path, self._size, self._draw = sampling.path, sampling.size, draw
        # Task -> the greatest key that can still get into the sample, as the file was written last.
        self._limit: dict[str, float] = {}
        self._noted = _Noted()
        self._lock = threading.Lock()  # held for moments only, so that the event loop may wait for it
        self._fault: str | None = None

    def note(self, texts: Sequence[str], pairs: Sequence[str | None], answers: Sequence[Answer]) -> None:
        """See answered texts, and keep those that chance chooses until the next `write`."""
        with self._lock:
            for text, pair, answer in zip(texts, pairs, answers, strict=True):
                for task, prediction in answer.predictions.items():
                    if isinstance(prediction, EmbeddingPrediction):
                        continue  # nothing to label, and long
                    self._noted.seen[task] += 1
                    key = self._draw()
                    if key > min(self._limit.get(task, 1.0), self._noted.most.get(task, 1.0)):
                        continue
                    # A list of all scores, or of all words, is longer than what is to be labelled.
                    said = {name: of for name, of in prediction.record(0).items() if name not in ("scores", "words")}
                    line = {"task": task, **_texts(text, pair), **said, "time": int(time.time()), "key": key}
                    self._noted.add(line, self._size)

    def write(self) -> None:
        """Merge what was noted since the last time into the file. May run in another thread than `note`.

        What cannot be written is written the next time.

        Raises:
            OSError: The file cannot be written, or another process holds it.
            UserError: The file holds something else.
        """
        with self._lock:
            noted, self._noted = self._noted, _Noted()
        if not noted.seen:
            return
        try:
            with _locked(self._path):
                merged = self._merged(_read(self._path), noted)
                _write(self._path, merged)
        except BaseException:
            with self._lock:
                self._noted.add_back(noted, self._size)
            raise
        with self._lock:
            self._limit = {task: _limit(lines, self._size) for task, lines in merged.items()}

    async def keep(self) -> None:
        """Write again and again, for ever."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write_aside()

    async def write_aside(self) -> None:
        """Write in a thread. A failure is logged once, and so is its end."""
        fault = None
        try:
            await asyncio.to_thread(self.write)
        except (OSError, UserError) as error:
            fault = str(error)
        except Exception as error:  # a fault of our own must not end the sample
            fault = f"{type(error).__name__}: {error}"
        if fault is not None and fault != self._fault:
            log.error("--sample: %s is not written, and the newest texts wait: %s", self._path, fault)
        elif fault is None and self._fault is not None:
            log.warning("--sample: %s is written again", self._path)
        self._fault = fault

    def _merged(self, found: Lines, noted: _Noted) -> Lines:
        for task, count in noted.seen.items():
            lines = found.get(task, [])
            most = _limit(lines, self._size)
            if most > self._limit.get(task, 1.0):
                # The file was begun anew meanwhile. What was noted for the old one has none of its greater keys.
                continue
            most = min(most, noted.most.get(task, 1.0))
            total = (lines[0]["of"] if lines else 0) + count
            kept = [line for line in (*lines, *noted.lines.get(task, ())) if line["key"] <= most]
            found[task] = [line | {"of": total} for line in _smallest(kept, self._size)]
        return _within_bytes(found)


def check_sample(path: Path) -> None:
    """Check that a sample can be kept in a file, which is written for that. If there is none, it is made.

    Raises:
        UserError: The file holds something else, or cannot be written where it is.
    """
    try:
        with _locked(path):
            _write(path, _read(path))
    except OSError as error:
        hint = "give another file"
        if not path.parent.is_dir():
            hint = f"{path.parent} is no folder: make it, or {hint}"
        elif error.errno == errno.EBUSY:
            hint = "it is mounted by itself, and so cannot be replaced: mount a folder, and give a file in it"
        raise UserError(f"--sample {path}: cannot be written ({error.strerror or error}): {hint}") from None


def _texts(text: str, pair: str | None) -> dict[str, Any]:
    texts = {"text": _cut(text)}
    if pair is not None:
        texts["text_pair"] = _cut(pair)
    cut = texts["text"] != text or texts.get("text_pair") != pair
    return {**texts, **({"cut": True} if cut else {})}


def _cut(text: str) -> str:
    content = text[:MOST_TEXT_BYTES].encode("utf-8", "replace")
    return content[:MOST_TEXT_BYTES].decode("utf-8", "ignore")


def _bytes_of(line: dict[str, Any]) -> int:
    return sys.getsizeof(line["text"]) + sys.getsizeof(line.get("text_pair")) + _LINE_BYTES


def _smallest(lines: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return nsmallest(size, lines, key=lambda line: float(line["key"]))


def _limit(lines: list[dict[str, Any]], size: int) -> float:
    """Return the greatest key that can get into a sample of so many lines.

    If the sample was smaller in an earlier run, what had greater keys is gone, so later texts may not have them either.
    """
    full = bool(lines) and (len(lines) >= size or lines[0]["of"] > len(lines))
    return float(_smallest(lines, size)[-1]["key"]) if full else 1.0


def _within_bytes(lines: Lines) -> Lines:
    """Return as many lines of each task as the file may hold, the same number of each that has so many."""
    sizes = {task: [len(_encoded(line)) for line in some] for task, some in lines.items()}
    count = max(map(len, lines.values()), default=0)
    while sum(sum(some[:count]) for some in sizes.values()) > MOST_FILE_BYTES:
        count = count * 7 // 8
    return {task: _smallest(some, count) for task, some in lines.items()}


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _read(path: Path) -> Lines:
    found: Lines = {}
    try:
        with open_regular(path, max_bytes=MOST_FILE_BYTES) as file:
            for number, text in enumerate(file, start=1):
                line = _line(text)
                if line is None:
                    raise UserError(f"--sample {path}: line {number} is none that --sample writes: give another file")
                found.setdefault(line["task"], []).append(line)
    except FileNotFoundError:
        pass
    return found


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    right = (
        isinstance(line, dict)
        and isinstance(line.get("task"), str)
        and isinstance(line.get("text"), str)
        and type(line.get("of")) is int
        and isinstance(line.get("key"), float)
        and math.isfinite(line["key"])
    )
    return line if right else None


def _write(path: Path, lines: Lines) -> None:
    """Write the file aside, and move it to its place. Its lock must be held."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.unlink(missing_ok=True)  # of a process that died
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for task in sorted(lines):
                file.writelines(map(_encoded, lines[task]))
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock beside the file, so that of several processes one writes at a time.

    The kernel ends this if the process dies.

    Raises:
        OSError: The lock cannot be opened, or another process holds it for too long.
    """
    lock = path.with_name(f".{path.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(lock, flags, 0o600)
    try:
        ends = time.monotonic() + LOCK_S
        while not _lock_now(descriptor):
            if time.monotonic() > ends:
                raise TimeoutError(f"another process holds {lock}")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
