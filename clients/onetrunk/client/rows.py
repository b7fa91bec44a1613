"""A call's input, checked before anything is sent: texts, or token ids."""

from __future__ import annotations

import operator
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

import numpy as np

from onetrunk.client.catalogue import Catalogue
from onetrunk.client.kinds import reader_of
from onetrunk.client.plan import Group
from onetrunk.client.tensor import Tensor, bytes_tensor, int64_tensor
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import BadInput, Problem
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    INPUT_IDS,
    MULTITASK,
    MULTITASK_TOKENS,
    TEXT,
    TEXT_PAIR,
    TOKEN_TYPE_IDS,
)

T = TypeVar("T")


class Rows(Protocol):
    """What a call needs to know about its input, whatever it is made of."""

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
        """The rows by the tasks they ask. Raises UnknownTask or BadInput."""

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """The tensors of a request with these rows."""

    def text(self, row: int) -> str:
        """A row's text, or its first one; empty where it has none."""


@dataclass(frozen=True)
class TextRows:
    """Texts, each alone or with a second one, in UTF-8."""

    texts: tuple[bytes, ...]
    pairs: tuple[bytes | None, ...]
    model: str = MULTITASK
    reports_truncation: bool = True

    @classmethod
    def check(cls, texts: str | Sequence[str], pairs: str | Sequence[str | None] | None) -> TextRows:
        """Raises BadInput, with every problem there is, if a row cannot be read."""
        one = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else _listed(texts, "texts")
        if pairs is None:
            pairs = [None] * len(texts)
        elif isinstance(pairs, str):
            pairs = [pairs] if one else _refuse(f"pairs is one string for a list of {len(texts)} texts: give a list")
        else:
            pairs = _listed(pairs, "pairs")
        if len(pairs) != len(texts):
            _refuse(f"{len(pairs)} pairs for {len(texts)} texts: give one pair, or None, for each text")
        problems: list[Problem] = []
        first = _each(texts, lambda text: _encoded(text, "text"), problems)
        second = _each(pairs, lambda pair: None if pair is None else _encoded(pair, "pair"), problems)
        if problems:
            raise BadInput(sorted(problems, key=lambda problem: problem.row or 0))
        return cls(tuple(first), tuple(second))

    @property
    def sizes(self) -> list[int]:
        """Row -> bytes of both texts."""
        return [len(text) + len(pair or b"") for text, pair in zip(self.texts, self.pairs, strict=True)]

    def groups(self, catalogue: Catalogue, tasks: Sequence[str] | None) -> list[Group]:
        """Rows alone and rows with a pair, each with the tasks of that form.

        Raises:
            UnknownTask: a task is not served.
            BadInput: a row has a pair where a task reads one text, or the reverse; or no task fits it.
        """
        chosen = _chosen(catalogue, tasks)
        by_form: dict[str, list[int]] = defaultdict(list)
        for row, pair in enumerate(self.pairs):
            by_form["single" if pair is None else "pair"].append(row)
        fitting = {form: tuple(task for task in chosen if task.form == form) for form in by_form}
        problems = [
            Problem(row, message)
            for form, rows in by_form.items()
            if (message := _misfit(form, chosen, fitting[form], named=tasks is not None))
            for row in rows
        ]
        if problems:
            raise BadInput(sorted(problems, key=lambda problem: problem.row or 0))
        return [Group(tuple(rows), fitting[form]) for form, rows in by_form.items()]

    def text(self, row: int) -> str:
        """The row's text, or the first one of its pair."""
        return self.texts[row].decode()

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """``text``, and ``text_pair`` where these rows have one."""
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
    def check(cls, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None) -> TokenRows:
        """Raises BadInput, with every problem there is, if a row cannot be read."""
        problems: list[Problem] = []
        ids = _each(input_ids, lambda row: _whole_numbers(row, "input_ids", below=2**63), problems)
        types = [(0,) * len(row) for row in ids]
        if token_type_ids is not None:
            if len(token_type_ids) != len(ids):
                _refuse(f"{len(token_type_ids)} rows of token_type_ids for {len(ids)} of input_ids")
            types = _each(token_type_ids, lambda row: _whole_numbers(row, "token_type_ids", below=2), problems)
        problems = problems or [
            Problem(row, f"{len(other)} token_type_ids for {len(some)} input_ids")
            for row, (some, other) in enumerate(zip(ids, types, strict=True))
            if len(some) != len(other)
        ]
        if problems:
            raise BadInput(sorted(problems, key=lambda problem: problem.row or 0))
        return cls(tuple(ids), tuple(types))

    @property
    def sizes(self) -> list[int]:
        """Row -> bytes of its ids."""
        return [8 * len(ids) for ids in self.input_ids]

    def groups(self, catalogue: Catalogue, tasks: Sequence[str] | None) -> list[Group]:
        """All rows with all tasks: token ids do not tell a pair from a single text.

        Raises:
            UnknownTask: a task is not served.
            BadInput: a row is longer than the server's longest, or a task is about words, of which ids say nothing.
        """
        chosen = _chosen(catalogue, tasks)
        about_words = [task for task in chosen if (reader := reader_of(task)) and reader.about_words]
        if about_words and tasks is not None:
            _refuse(f"task {about_words[0].name!r} is about the words of a text: give the text, not token ids")
        chosen = tuple(task for task in chosen if task not in about_words)
        if not chosen:
            _refuse(f"every task served is about the words of a text: give texts ({', '.join(catalogue.tasks)})")
        longest = catalogue.max_length
        problems = [
            Problem(row, f"{len(ids)} tokens, at most {longest} are served; cut it before its closing [SEP]")
            for row, ids in enumerate(self.input_ids)
            if len(ids) > longest
        ]
        if problems:
            raise BadInput(problems)
        return [Group(tuple(range(len(self.input_ids))), chosen)]

    def text(self, row: int) -> str:
        """None: there are but token ids."""
        return ""

    def inputs(self, rows: Sequence[int]) -> list[Tensor]:
        """Ids, mask and types, padded on the right to the longest of these rows."""
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


def _refuse(message: str) -> NoReturn:
    raise BadInput([Problem(None, message)])


def _listed(values: Iterable[T], name: str) -> list[T]:
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        _refuse(f"{name} is {type(values).__name__}, expected a list of strings")
    return list(values)


def _each(values: Iterable[object], read: Callable[[object], T], problems: list[Problem]) -> list[T]:
    """Reads every value; adds one problem for each that cannot be read."""
    results: list[T] = []
    for row, value in enumerate(values):
        try:
            results.append(read(value))
        except ValueError as error:
            problems.append(Problem(row, str(error)))
    return results


def _encoded(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {type(text).__name__}, expected str")
    # Control and format characters leave nothing to read, blanks neither: the server refuses such
    # a text too, but there it would cost a round trip.
    if all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text):
        raise ValueError(f"{name} is empty" if not text else f"{name} has nothing to read in it: {text[:20]!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate at {error.start}, which UTF-8 cannot hold") from None


def _whole_numbers(row: object, name: str, *, below: int) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(number) for number in row)  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(f"{name} must be a sequence of whole numbers, found {str(row)[:40]}") from None
    if not numbers:
        raise ValueError(f"{name} is empty, expected 1 token or more")
    for number in numbers:
        if not 0 <= number < below:
            raise ValueError(f"{name} has {number}, expected 0 <= number < {below}")
    return numbers


def _chosen(catalogue: Catalogue, names: Sequence[str] | None) -> tuple[TaskInfo, ...]:
    """The tasks named, or without names all that this client can read.

    A server newer than this client may have kinds of task that it does not know: only asking for one is an error.
    """
    if names is None:
        return tuple(task for task in catalogue.tasks.values() if reader_of(task))
    chosen = catalogue.named([names] if isinstance(names, str) else names)
    if not chosen:
        _refuse("tasks is an empty list; leave it out to ask every task that fits")
    for task in chosen:
        if reader_of(task) is None:
            _refuse(f"task {task.name!r} is of kind {task.kind!r}, which this version of the client cannot read")
    return chosen


def _misfit(form: str, chosen: Sequence[TaskInfo], fitting: Sequence[TaskInfo], *, named: bool) -> str | None:
    """Why rows of this form cannot ask these tasks, or None if they can."""
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
