"""A call's input, checked before anything is sent, and the batches in which it is sent."""

from __future__ import annotations

import operator
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import reader_of
from onetrunk.client.wire import Tensor, bytes_tensor, int64_tensor
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import BadInput, Problem, counted
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    INPUT_IDS,
    MULTITASK,
    MULTITASK_TOKENS,
    TEXT,
    TEXT_PAIR,
    TOKEN_TYPE_IDS,
)
from onetrunk.protocol.words import is_readable

T = TypeVar("T")

# Rows are sorted by length among this many batches: enough for rows of equal buckets to meet, and the first rows of a
# long list are still among the first to be answered.
WINDOW_BATCHES = 16

# A request is kept below this size, half of what the front takes, unless a single row is larger: the server's own limit
# on a text is there to name that text, and should not be met by the sum of its neighbours.
MAX_BATCH_BYTES = 4 * 2**20

# Iterables that are no lists of rows: their items are characters, bytes or keys, or have no order.
_NOT_LISTS = (str, bytes, bytearray, memoryview, Mapping, set, frozenset)


@dataclass(frozen=True)
class Group:
    """Rows that ask the same tasks, and may share a request."""

    rows: tuple[int, ...]
    tasks: tuple[TaskInfo, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one request, as indices into the caller's list, and the tasks that they ask."""

    rows: tuple[int, ...]
    tasks: tuple[TaskInfo, ...]


class Rows(Protocol):
    """The input of a call, whether it consists of texts or of token ids."""

    @property
    def model(self) -> str:
        """The ensemble that reads it."""

    @property
    def reports_truncation(self) -> bool:
        """Whether that ensemble has the output ``truncated``."""

    @property
    def sizes(self) -> Sequence[int]:
        """Row -> bytes, for batches of about equal length."""

    def groups(self, catalogue: Catalogue, tasks: Sequence[str] | None) -> list[Group]:
        """Group the rows by the tasks that they ask. Raises UnknownTask or BadInput."""

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the input tensors of a request with these rows."""

    def text(self, row: int) -> str:
        """Return a row's text, or the first text of its pair."""

    def pair(self, row: int) -> str | None:
        """Return the second text of a row's pair, or None if it has none."""


@dataclass(frozen=True)
class TextRows:
    """Texts in UTF-8, each alone or with a second one."""

    texts: tuple[bytes, ...]
    pairs: tuple[bytes | None, ...]
    model: str = MULTITASK
    reports_truncation: bool = True

    @classmethod
    def check(cls, texts: object, pairs: object) -> TextRows:
        """Check a caller's texts.

        Args:
            texts: One text, or an iterable of texts.
            pairs: The second texts: one for one text, or one or None for each text; None if no text has one.

        Raises:
            BadInput: Something cannot be read. The error holds every fault.
        """
        expected = "a string or a list of strings"
        first = [texts] if isinstance(texts, str) else _listed(texts, "texts", expected)
        if pairs is None:
            second: list[object] = [None] * len(first)
        elif isinstance(pairs, str):
            if not isinstance(texts, str):
                _refuse(f"pairs is one string for a list of {counted(len(first), 'text', 'texts')}: give a list")
            second = [pairs]
        else:
            second = _listed(pairs, "pairs", expected)
        if len(second) != len(first):
            found = f"{counted(len(second), 'pair', 'pairs')} for {counted(len(first), 'text', 'texts')}"
            _refuse(f"{found}: give one pair, or None, for each text")
        problems: list[Problem] = []
        encoded = [_attempt(problems, row, _encode, text, "text") for row, text in enumerate(first)]
        encoded_pairs = [
            None if pair is None else _attempt(problems, row, _encode, pair, "pair") for row, pair in enumerate(second)
        ]
        _raise_all(problems)
        return cls(tuple(text for text in encoded if text is not None), tuple(encoded_pairs))

    @property
    def sizes(self) -> list[int]:
        """Row -> bytes of both texts."""
        return [len(text) + len(pair or b"") for text, pair in zip(self.texts, self.pairs, strict=True)]

    def groups(self, catalogue: Catalogue, tasks: Sequence[str] | None) -> list[Group]:
        """Group rows with a pair and rows without one, each with the tasks of that form.

        Raises:
            UnknownTask: A task is not served.
            BadInput: A row has a pair but a task reads one text, or the reverse; or no task fits the row.
        """
        chosen = _chosen_tasks(catalogue, tasks)
        by_form: dict[str, list[int]] = defaultdict(list)
        for row, pair in enumerate(self.pairs):
            by_form["single" if pair is None else "pair"].append(row)
        fitting = {form: tuple(task for task in chosen if task.form == form) for form in by_form}
        _raise_all(
            Problem(row, message)
            for form, rows in by_form.items()
            if (message := _form_mismatch(form, chosen, fitting[form], named=tasks is not None))
            for row in rows
        )
        return [Group(tuple(rows), fitting[form]) for form, rows in by_form.items()]

    def text(self, row: int) -> str:
        """Return the row's text, or the first text of its pair."""
        return self.texts[row].decode()

    def pair(self, row: int) -> str | None:
        """Return the second text of the row's pair, or None if it has none."""
        pair = self.pairs[row]
        return None if pair is None else pair.decode()

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """Return ``text``, and ``text_pair`` if any of these rows has one. *Shape of both:* (rows, 1)."""
        tensors = [bytes_tensor(TEXT, [self.texts[row] for row in rows])]
        pairs = [self.pairs[row] for row in rows]
        if any(pair is not None for pair in pairs):
            tensors.append(bytes_tensor(TEXT_PAIR, [pair or b"" for pair in pairs]))
        return tensors


@dataclass(frozen=True)
class TokenRows:
    """Token ids, special tokens included, of any length up to the server's longest."""

    input_ids: tuple[tuple[int, ...], ...]
    token_type_ids: tuple[tuple[int, ...], ...]
    model: str = MULTITASK_TOKENS
    reports_truncation: bool = False

    @classmethod
    def check(cls, input_ids: object, token_type_ids: object) -> TokenRows:
        """Check a caller's token ids.

        Args:
            input_ids: An iterable of rows, each an iterable of integers.
            token_type_ids: The same of 0 and 1, or None for all 0.

        Raises:
            BadInput: Something cannot be read. The error holds every fault.
        """
        expected = "a list of rows of token ids, as in [[101, 7592, 102]]"
        rows = _listed(input_ids, INPUT_IDS, expected)
        types = None if token_type_ids is None else _listed(token_type_ids, TOKEN_TYPE_IDS, expected)
        if types is not None and len(types) != len(rows):
            found = counted(len(types), "row", "rows")
            _refuse(f"{found} of token_type_ids for {len(rows)} of input_ids: give one row for each")
        problems: list[Problem] = []
        ids = [_attempt(problems, row, _token_ids, found) for row, found in enumerate(rows)]
        if types is None:
            kinds: list[tuple[int, ...] | None] = [(0,) * len(found or ()) for found in ids]
        else:
            kinds = [_attempt(problems, row, _token_types, types[row], found) for row, found in enumerate(ids)]
        _raise_all(problems)
        return cls(tuple(row for row in ids if row is not None), tuple(row for row in kinds if row is not None))

    @property
    def sizes(self) -> list[int]:
        """Row -> bytes of its ids."""
        return [8 * len(ids) for ids in self.input_ids]

    def groups(self, catalogue: Catalogue, tasks: Sequence[str] | None) -> list[Group]:
        """Return one group of all rows, since token ids do not tell a pair from a single text.

        Raises:
            UnknownTask: A task is not served.
            BadInput: A row is longer than the server's longest, or a task needs the words, which ids do not give.
        """
        chosen = _chosen_tasks(catalogue, tasks)
        needs_words = [task for task in chosen if (reader := reader_of(task)) and reader.needs_words]
        if needs_words and tasks is not None:
            _refuse(f"task {needs_words[0].name!r} is about the words of a text: give the text, not token ids")
        chosen = tuple(task for task in chosen if task not in needs_words)
        if not chosen:
            _refuse(f"every task served is about the words of a text: give texts ({', '.join(catalogue.tasks)})")
        longest = catalogue.max_length
        _raise_all(
            Problem(row, f"{len(ids)} tokens, at most {longest} are served; cut it before its closing [SEP]")
            for row, ids in enumerate(self.input_ids)
            if len(ids) > longest
        )
        return [Group(tuple(range(len(self.input_ids))), chosen)]

    def text(self, row: int) -> str:
        """Return an empty string, since the text is not known."""
        return ""

    def pair(self, row: int) -> str | None:
        """Return None, since the text is not known."""
        return None

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """Return ids, mask and types, padded on the right to the longest of these rows. *Shape:* (rows, tokens)."""
        shape = (len(rows), max(len(self.input_ids[row]) for row in rows))
        ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
        for at, row in enumerate(rows):
            length = len(self.input_ids[row])
            ids[at, :length] = self.input_ids[row]
            mask[at, :length] = 1
            types[at, :length] = self.token_type_ids[row]
        return [
            int64_tensor(INPUT_IDS, ids),
            int64_tensor(ATTENTION_MASK, mask),
            int64_tensor(TOKEN_TYPE_IDS, types),
        ]


def plan_batches(groups: Sequence[Group], sizes: Sequence[int], *, max_rows: int) -> list[Batch]:
    """Cut every group into batches of rows of about one length.

    Args:
        groups: The groups. Each row is in at most one of them.
        sizes: Row -> its size in bytes, which stands for its length.
        max_rows: The most rows in one batch.

    Returns:
        Batches that hold every row of every group exactly once.
    """
    return [Batch(rows, group.tasks) for group in groups for rows in _cut(group.rows, sizes, max_rows)]


def check_task_names(tasks: object) -> tuple[str, ...] | None:
    """Check the names of tasks that a caller gave: one name, an iterable of names, or None.

    Raises:
        BadInput: It is something else, or holds no name.
    """
    if tasks is None:
        return None
    if isinstance(tasks, (Mapping, set, frozenset)):  # such as what `Client.tasks` returns
        tasks = list(tasks)
    names = [tasks] if isinstance(tasks, str) else _listed(tasks, "tasks", "a list of names of tasks")
    if not names:
        _refuse("tasks is an empty list; leave it out to ask every task that fits")
    found = []
    for place, name in enumerate(names):
        if not isinstance(name, str):
            _refuse(f"tasks has {type(name).__name__} at place {place}, expected names of tasks")
        found.append(name)
    return tuple(found)


def _cut(rows: Sequence[int], sizes: Sequence[int], max_rows: int) -> Iterator[tuple[int, ...]]:
    window = max_rows * WINDOW_BATCHES
    for start in range(0, len(rows), window):
        batch: list[int] = []
        total = 0
        for row in sorted(rows[start : start + window], key=lambda row: sizes[row]):
            if batch and (len(batch) == max_rows or total + sizes[row] > MAX_BATCH_BYTES):
                yield tuple(batch)
                batch, total = [], 0
            batch.append(row)
            total += sizes[row]
        yield tuple(batch)


def _refuse(message: str) -> NoReturn:
    raise BadInput.of_call(message)


def _raise_all(problems: Iterable[Problem]) -> None:
    found = sorted(problems, key=lambda problem: problem.row or 0)
    if found:
        raise BadInput(found)


def _listed(values: object, name: str, expected: str) -> list[Any]:
    """Return the values of any iterable whose order means something."""
    try:
        if isinstance(values, _NOT_LISTS):
            raise TypeError
        iterator = iter(values)  # type: ignore[call-overload]
    except TypeError:  # also of an array without dimensions
        _refuse(f"{name} is {type(values).__name__}, expected {expected}")
    return list(iterator)


def _attempt(problems: list[Problem], row: int, read: Callable[..., T], *values: object) -> T | None:
    """Read a row, or note why it cannot be read."""
    try:
        return read(*values)
    except ValueError as error:
        problems.append(Problem(row, str(error)))
        return None


def _encode(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {type(text).__name__}, expected str")
    # The server refuses such a text too, but that would cost a round trip.
    if not is_readable(text):
        raise ValueError(f"{name} is empty" if not text else f"{name} has nothing to read in it: {text[:20]!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate at {error.start}, which UTF-8 cannot hold") from None


def _token_ids(row: object) -> tuple[int, ...]:
    ids = _integers(row, INPUT_IDS, below=2**63)
    if not ids:
        raise ValueError(f"{INPUT_IDS} is empty, expected 1 token or more")
    return ids


def _token_types(row: object, ids: tuple[int, ...] | None) -> tuple[int, ...]:
    types = _integers(row, TOKEN_TYPE_IDS, below=2)
    if ids is not None and len(types) != len(ids):
        raise ValueError(f"{len(types)} token_type_ids for {len(ids)} input_ids")
    return types


def _integers(row: object, name: str, *, below: int) -> tuple[int, ...]:
    try:
        if isinstance(row, _NOT_LISTS):
            raise TypeError
        numbers = tuple(operator.index(number) for number in row)  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(f"{name} must be a sequence of integers, found {reprlib.repr(row)}") from None
    for number in numbers:
        if not 0 <= number < below:
            raise ValueError(f"{name} has {number}, expected 0 <= number < {below}")
    return numbers


def _chosen_tasks(catalogue: Catalogue, names: Sequence[str] | None) -> tuple[TaskInfo, ...]:
    """Return the tasks of these names, or without names all that this client can read, but for those `on_request`.

    A server newer than this client may have kinds of task that it does not know: only asking for one is an error.
    """
    if names is None:
        return tuple(task for task in catalogue.tasks.values() if reader_of(task) and not task.on_request)
    chosen = catalogue.named(names)
    for task in chosen:
        if reader_of(task) is None:
            _refuse(f"task {task.name!r} is of kind {task.kind!r}, which this version of the client cannot read")
    return chosen


def _form_mismatch(form: str, chosen: Sequence[TaskInfo], fitting: Sequence[TaskInfo], *, named: bool) -> str | None:
    """Return why rows of this form cannot ask these tasks, or None if they can."""
    if named and len(fitting) < len(chosen):
        task = next(task.name for task in chosen if task.form != form)
        return (
            f"task {task!r} reads one text, but a pair was given"
            if form == "pair"
            else f"task {task!r} reads a pair, but none was given"
        )
    if not fitting:
        others = ", ".join(task.name for task in chosen) or "none"
        return f"no task served reads {'a pair' if form == 'pair' else 'one text alone'}; served: {others}"
    return None
