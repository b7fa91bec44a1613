"""Long texts, read window by window: where the windows are, what is asked about them, and how the answers are pooled.

A text that fits costs nothing more. Of one that does not, the first request has read the beginning, which is its first
window. The tokenizer says where the others are, and they are asked about as texts of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Answer, Reading, TokenizedText
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import reader_of
from onetrunk.client.rows import Batch, Group, TextRows, plan_batches
from onetrunk.client.scheduler import LongText, ReadingScheduler, Scheduler, Terms
from onetrunk.client.wire import Arrays, UnexpectedResponse, float_column, request_message, window_places
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.head_json import OVERLAP
from onetrunk.protocol.names import TOKENIZER, WINDOW_OVERLAP, WINDOWS
from onetrunk.protocol.words import WINDOWED_TEXTS, is_readable, words_of

Allow = Callable[[int, int], None]
"""Called with the number of windows that a call is about to ask about, and their bytes; it may refuse them."""


def allow_any(windows: int, size: int) -> None:
    """Allow any number of windows; see ``Allow``."""


@dataclass(frozen=True)
class Window:
    """A window: its first character and the one after its last, in the text and in the second text of a pair."""

    start: int
    end: int
    pair_start: int
    pair_end: int


@dataclass
class Windowed:
    """A long text, and the tasks that read it in the same windows.

    Attributes:
        long_text: The text.
        tasks: The tasks.
        overlap: The share of a window that the next one reads again.
        windows: The windows, once they are known.
        readings: What was read of each.
    """

    long_text: LongText
    tasks: tuple[TaskInfo, ...]
    overlap: float
    windows: Sequence[Window] = ()
    readings: dict[int, Reading] = field(default_factory=dict)

    def found(self, windows: Sequence[Window]) -> None:
        """Take the windows. The first is the beginning of the text, and was read by the first request.

        Raises:
            UnexpectedResponse: They are not in the text.
        """
        text, pair = self.long_text.text, self.long_text.pair or ""
        if not windows or any(
            not (0 <= one.start < one.end <= len(text) and 0 <= one.pair_start <= one.pair_end <= len(pair))
            for one in windows
        ):
            raise UnexpectedResponse("the windows of a text are not in it")
        self.windows = windows
        if windows[0].start == windows[0].pair_start == 0:
            self.readings[0] = self.long_text.first

    @property
    def unread(self) -> list[int]:
        """The windows that are to be asked about."""
        return [at for at in range(len(self.windows)) if at not in self.readings]

    def text(self, window: int) -> bytes:
        """Return a window of the text."""
        return self.long_text.text[self.windows[window].start : self.windows[window].end].encode()

    def pair(self, window: int) -> bytes | None:
        """Return the part of the second text that is read beside a window, or None if there is no second text."""
        if self.long_text.pair is None:
            return None
        return self.long_text.pair[self.windows[window].pair_start : self.windows[window].pair_end].encode()

    @property
    def reaches_the_end(self) -> bool:
        """Whether the last window reaches the end of the text, or of both texts."""
        last, pair = self.windows[-1], self.long_text.pair or ""
        return not (is_readable(self.long_text.text[last.end :]) or is_readable(pair[last.pair_end :]))

    def add_to(self, answer: Answer) -> Answer:
        """Return an answer with the tasks' predictions on the whole text, once every window was read.

        Args:
            answer: The answer by what was read before.
        """
        readings = [self.readings[at] for at in range(len(self.windows))]
        tokens = [reading.tokens or 1 for reading in readings]
        truncated = not self.reaches_the_end
        predictions = dict(answer.predictions)
        for task in self.tasks:
            reader = reader_of(task)
            assert reader is not None, "tasks without a reader are never asked"
            scores = reader.pool([reading.scores[task.name] for reading in readings], tokens)
            text = TokenizedText(self.long_text.text, truncated, self._words) if reader.needs_words else None
            predictions[task.name] = replace(reader.read(task, scores.tolist(), text), windows=len(readings))
        read = None
        if answer.tokens is not None:
            read = answer.tokens + sum(one.tokens or 0 for one in readings if one is not self.long_text.first)
        first, last = self.long_text.first, max(reading.answered_s for reading in readings)
        ms = max(answer.ms, (last - first.sent_s) * 1000)
        return Answer(predictions, answer.truncated or truncated, ms, read)

    @cached_property
    def _words(self) -> NDArray[np.int64]:
        """The words of all windows' tokens, by their places in the whole text; -1 where another window answers.

        *Shape:* (tokens of all windows, 3)
        """
        found = []
        for at, (first, behind) in enumerate(answered_parts(self.long_text.text, self.windows)):
            reading = self.readings[at]
            assert reading.words is not None, "tasks that need words are asked with them"
            shift = self.windows[at].start
            words = np.where(reading.words >= 0, reading.words + np.array([0, shift, shift]), -1)
            # A token may be in words of two windows' parts.
            words[:, 1:] = words[:, 1:].clip(first, behind)
            words[words[:, 1] >= words[:, 2]] = -1
            found.append(words)
        return np.concatenate(found)


def answered_parts(text: str, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Return of which part of a text each window answers: each word is answered where it is farthest from the border.

    Args:
        text: The text.
        windows: Its windows, in order.

    Returns:
        The first character of each part, and the first one behind it.
    """
    starts = [start for start, _ in words_of(text, until=windows[-1].end)]
    begins = [0]
    for one, following in pairwise(windows):
        # The words that both read are divided in their middle.
        middle = (bisect_left(starts, following.start) + bisect_left(starts, one.end) - 1) // 2 + 1
        begins.append(starts[middle] if middle < len(starts) else len(text))
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


class WindowFinder(Scheduler):
    """Asks the tokenizer where the windows of texts are."""

    def __init__(self, texts: Sequence[Windowed], catalogue: Catalogue, terms: Terms) -> None:
        """Plan the requests.

        Args:
            texts: The texts, which get their windows.
            catalogue: The limits of the server.
            terms: On what terms the requests are sent.
        """
        self._texts = texts
        long_texts = [one.long_text for one in texts]
        pairs = tuple(None if one.pair is None else one.pair.encode() for one in long_texts)
        self._rows = TextRows(tuple(one.text.encode() for one in long_texts), pairs)
        most = min(WINDOWED_TEXTS, catalogue.max_batch_size)
        batches = plan_batches([Group(tuple(range(len(texts))), ())], self._rows.sizes, max_rows=most)
        super().__init__(batches, terms, [one.row for one in long_texts])

    def _request(self, batch: Batch) -> Any:
        overlaps = float_column(WINDOW_OVERLAP, [self._texts[row].overlap for row in batch.rows])
        return request_message(TOKENIZER, [*self._rows.inputs(batch.rows), overlaps], [WINDOWS])

    def _take(self, batch: Batch, arrays: Arrays) -> None:
        for row, places in zip(batch.rows, window_places(arrays, len(batch.rows)), strict=True):
            self._texts[row].found([Window(*place) for place in places])


class WindowScheduler(ReadingScheduler):
    """Asks tasks about windows, and pools their answers.

    Attributes:
        answers: Row in the caller's list -> answer, for the texts of which every window was read.
    """

    def __init__(self, texts: Sequence[Windowed], catalogue: Catalogue, terms: Terms) -> None:
        """Plan the requests.

        Args:
            texts: The texts, whose windows are known.
            catalogue: The tasks and limits of the server.
            terms: On what terms the requests are sent.
        """
        self._places = [(one, window) for one in texts for window in one.unread]
        rows = TextRows(
            tuple(one.text(window) for one, window in self._places),
            tuple(one.pair(window) for one, window in self._places),
        )
        by_tasks: dict[tuple[str, ...], list[int]] = defaultdict(list)
        tasks_of = {tuple(task.name for task in one.tasks): one.tasks for one in texts}
        for row, (one, _) in enumerate(self._places):
            by_tasks[tuple(task.name for task in one.tasks)].append(row)
        groups = [Group(tuple(some), tasks_of[names]) for names, some in by_tasks.items()]
        super().__init__(rows, groups, catalogue, terms, [one.long_text.row for one, _ in self._places])
        self.size = sum(rows.sizes)
        self.answers = {one.long_text.row: one.long_text.answer for one in texts}
        self._cut = {
            one.long_text.row: any(not task.reads_windows for task in one.long_text.first.tasks) for one in texts
        }
        for row, answer in self.answers.items():
            # It said that the text was cut. That stays true of the tasks that do not read windows.
            self.answers[row] = replace(answer, truncated=self._cut[row])
        for one in texts:
            self._pool_if_read(one)

    @property
    def windows(self) -> int:
        """The number of windows to be asked about."""
        return len(self._places)

    def _keep(self, row: int, reading: Reading) -> None:
        one, window = self._places[row]
        one.readings[window] = reading
        self._pool_if_read(one)

    def _pool_if_read(self, one: Windowed) -> None:
        if not one.unread:
            self.answers[one.long_text.row] = one.add_to(self.answers[one.long_text.row])
            one.readings.clear()  # what was read of thousands of windows is not kept


class WindowRounds:
    """The rounds in which a call reads its long texts to the end."""

    def __init__(
        self, long_texts: Sequence[LongText], catalogue: Catalogue, terms: Terms, allow: Allow = allow_any
    ) -> None:
        """Plan the rounds.

        Args:
            long_texts: The texts.
            catalogue: The tasks and limits of the server.
            terms: On what terms the requests are sent.
            allow: Called before the windows are asked about.
        """
        self._texts = [Windowed(one, tasks, overlap) for one in long_texts for overlap, tasks in _by_overlap(one)]
        self._catalogue, self._terms, self._allow = catalogue, terms, allow
        self._last: WindowScheduler | None = None

    def rounds(self) -> Iterator[Scheduler]:
        """Yield one round after the other; each must be `done` before the next."""
        yield WindowFinder(self._texts, self._catalogue, self._terms)
        self._last = WindowScheduler(self._texts, self._catalogue, self._terms)
        self._allow(self._last.windows, self._last.size)
        yield self._last

    def answers(self) -> dict[int, Answer]:
        """Return row in the caller's list -> answer, once every round is done."""
        assert self._last is not None, "all rounds are done"
        return self._last.answers


def _by_overlap(long_text: LongText) -> list[tuple[float, tuple[TaskInfo, ...]]]:
    """Return the tasks that read windows, by the overlap of these."""
    found: dict[float, list[TaskInfo]] = defaultdict(list)
    for task in long_text.first.tasks:
        if task.reads_windows:
            found[OVERLAP if task.window_overlap is None else task.window_overlap].append(task)
    return [(overlap, tuple(tasks)) for overlap, tasks in found.items()]
