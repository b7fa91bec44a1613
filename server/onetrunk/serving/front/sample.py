"""A bounded, uniform sample of the texts that are asked, in a file of JSON lines, for people who label them.

Every text gets a random key, and of each task those with the smallest keys are kept. That is a reservoir: whatever has
been seen, each text of it is in the sample with the same probability. Samples of several processes, and that of the
file, are merged by keeping the smallest keys of all.

Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", with equal weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

from onetrunk.client.answer import Answer
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import read_regular
from onetrunk.serving.front.settings import Sampling

log = logging.getLogger("onetrunk.serving.front")

WRITE_EVERY_S = 15.0
# No trunk reads so much of a text.
MOST_CHARACTERS = 4000
MAX_FILE_BYTES = 1 << 30

Lines = dict[str, list[dict[str, Any]]]
"""Task -> the lines of the sample about it."""


class Sample:
    """The part of the sample that one process adds."""

    def __init__(self, sampling: Sampling, draw: Callable[[], float] = random.random) -> None:
        """Continue the sample in the file, or begin one.

        Args:
            sampling: Where, and how much.
            draw: Draws numbers from 0 to 1.

        Raises:
            UserError: The file holds something else, or cannot be written where it is.
        """
        self._path, self._size, self._draw = sampling.path, sampling.size, draw
        check_sample(self._path)
        # Task -> the greatest key that can still get into the sample.
        self._limit = {task: _limit(lines, self._size) for task, lines in _read(self._path).items()}
        self._found: Lines = {}
        self._seen: Counter[str] = Counter()

    def note(self, texts: Sequence[str], pairs: Sequence[str | None], answers: Sequence[Answer]) -> None:
        """See answered texts, and keep those that chance chooses until the next `write`."""
        for text, pair, answer in zip(texts, pairs, answers, strict=True):
            for task, prediction in answer.predictions.items():
                self._seen[task] += 1
                key = self._draw()
                if key > self._limit.get(task, 1.0):
                    continue
                found = self._found.setdefault(task, [])
                # A list of all scores, or of all words, is longer than what is to be labelled.
                said = {name: value for name, value in prediction.record(0).items() if name not in ("scores", "words")}
                found.append({"task": task, **_texts(text, pair), **said, "time": int(time.time()), "key": key})
                if len(found) >= 2 * self._size:
                    self._found[task] = _smallest(found, self._size)
                    self._limit[task] = self._found[task][-1]["key"]

    def write(self) -> None:
        """Merge what was found since the last time into the file. May run in another thread than `note`.

        Raises:
            OSError: The file cannot be written. What was found since the last time is lost.
            UserError: The file holds something else by now.
        """
        found, seen = self._found, self._seen
        self._found, self._seen = {}, Counter()
        if not seen:
            return
        with _locked(self._path.parent):
            merged = _read(self._path)
            for task, count in seen.items():
                lines = merged.get(task, [])
                most = _limit(lines, self._size)
                total = (lines[0]["of"] if lines else 0) + count
                own = [line for line in found.get(task, []) if line["key"] <= most]
                merged[task] = [line | {"of": total} for line in _smallest([*lines, *own], self._size)]
                self._limit[task] = _limit(merged[task], self._size)
            _write(self._path, merged)

    async def keep(self) -> None:
        """Write again and again, for ever."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write_aside()

    async def write_aside(self) -> None:
        """Write in a thread. A failure is logged."""
        try:
            await asyncio.to_thread(self.write)
        except (OSError, UserError) as error:
            log.error("--sample: texts of the last seconds are not in %s: %s", self._path, error)


def check_sample(path: Path) -> None:
    """Check that a sample can be kept in a file.

    Raises:
        UserError: The file holds something else, or cannot be written where it is.
    """
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--sample {path}: {path.parent} is no folder that this user may write to: give another file")
    _read(path)


def _texts(text: str, pair: str | None) -> dict[str, Any]:
    texts = {"text": text[:MOST_CHARACTERS]}
    if pair is not None:
        texts["text_pair"] = pair[:MOST_CHARACTERS]
    cut = max(len(text), len(pair or "")) > MOST_CHARACTERS
    return {**texts, **({"cut": True} if cut else {})}


def _smallest(lines: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return nsmallest(size, lines, key=lambda line: float(line["key"]))


def _limit(lines: list[dict[str, Any]], size: int) -> float:
    """Return the greatest key that can get into a sample of so many lines.

    If the sample was smaller in an earlier run, what had greater keys is gone, so later texts may not have them either.
    """
    full = bool(lines) and (len(lines) >= size or lines[0]["of"] > len(lines))
    return float(_smallest(lines, size)[-1]["key"]) if full else 1.0


def _read(path: Path) -> Lines:
    try:
        content = read_regular(path, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    found: Lines = {}
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not _is_line(line):
            raise UserError(f"--sample {path}: line {number} is none that --sample writes: give another file")
        found.setdefault(line["task"], []).append(line)
    return found


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("task"), str)
        and isinstance(line.get("text"), str)
        and type(line.get("of")) is int
        and isinstance(line.get("key"), float)
        and math.isfinite(line["key"])
    )


def _write(path: Path, lines: Lines) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for task in sorted(lines):
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[task])
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, so that of several processes one writes at a time. The kernel ends this if the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
