"""A task's labelled texts, checked when they are read, and their labels as targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import sha256_file
from onetrunk.protocol.words import is_readable, token_places
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import Kind, KindConfig, Offsets
from onetrunk.tasks.records import (
    BrokenLine,
    Record,
    RowError,
    RowErrors,
    Split,
    is_not_utf8,
    read_hub,
    read_records,
)
from onetrunk.tasks.task import Task
from onetrunk.tasks.task_file import locate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts: TypeAlias = Sequence[str] | Sequence[tuple[str, str]]
_TOKENIZER_BATCH = 2048


@dataclass(frozen=True)
class Examples:
    """The rows of one split.

    Attributes:
        source: The file or hub address, for messages.
        texts: One text for each row, or both texts of a pair.
        targets: The labels, encoded by the kind's ``LabelCodec``.
        sha256: The hash of the file's bytes; for a hub's data set, of its rows.
        left_out: The number of rows that could not be used.
        notes: What a user should know about the rows, such as how many were left out.
    """

    source: str
    texts: tuple[str, ...] | tuple[tuple[str, str], ...]
    targets: tuple[Any, ...]
    sha256: str
    left_out: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def read_examples(task: Task, split: Split, *, data_root: Path | None = None, skip_bad_rows: bool = False) -> Examples:
    """Read and check a split.

    Args:
        task: The task.
        split: ``train`` or ``dev``.
        data_root: The folder in which relative files are looked for first.
        skip_bad_rows: Leave out rows that cannot be used, and note how many, instead of refusing the file.

    Raises:
        UserError: The data cannot be found or read, no row is left, or rows cannot be used; the message says how many,
            why, and where.
    """
    place = locate(task, split, data_root)
    records: Iterable[Record | BrokenLine]
    if isinstance(place, Path):
        records, sha256 = read_records(place), sha256_file(place)
    else:
        rows = list(read_hub(place, split))
        records = rows
        sha256 = hashlib.sha256(json.dumps([row.values for row in rows], default=str).encode()).hexdigest()
    texts, targets, errors = _check(task, records)
    notes = []
    if errors.total:
        total = len(targets) + errors.total
        summary = "\n".join([f"{place}: {errors.total:,} of {total:,} rows cannot be used:", *errors.lines()])
        if not skip_bad_rows:
            raise UserError(f"{summary}\nfix them, or give --skip-bad-rows to continue without them")
        notes.append(f"left out {summary}")
    if not targets:
        raise UserError(f"{place}: it has no rows that can be used")
    if unused := get_kind(task.kind).codec.unused_labels(targets, task):
        noun = "label" if len(unused) == 1 else "labels"
        notes.append(f"no row of the {split} data has the {noun} {', '.join(map(repr, unused))}")
    return Examples(str(place), tuple(texts), tuple(targets), sha256, errors.total, tuple(notes))  # type: ignore[arg-type]


def _check(
    task: Task, records: Iterable[Record | BrokenLine]
) -> tuple[list[str | tuple[str, str]], list[Any], RowErrors]:
    texts: list[str | tuple[str, str]] = []
    targets: list[Any] = []
    errors = RowErrors()
    for record in records:
        if isinstance(record, BrokenLine):
            errors.add(record.line, "broken line", record.why)
            continue
        try:
            text: str | tuple[str, str] = _text(record, task.text_field, task)
            if task.form == "pair":
                text = (text, _text(record, task.text_pair_field, task))  # type: ignore[assignment]
            target = _target(record, task, text)
        except RowError as error:
            errors.add(record.line, error.fault, error.why)
            continue
        texts.append(text)
        targets.append(target)
    return texts, targets, errors


def _value(record: Record, field: str) -> object:
    value = record.values.get(field)
    if value is None:
        shown = ", ".join(list(record.values)[:6])
        what = f"{field!r} is null" if field in record.values else f"no {field!r}; there are: {shown}"
        raise RowError("missing field", what)
    return value


def _text(record: Record, field: str, task: Task) -> str:
    try:
        value = get_kind(task.kind).codec.read_text(_value(record, field))
    except ValueError as error:
        raise RowError("not a text", f"{field!r} {error}") from None
    if is_not_utf8(value):
        raise RowError("not a text", f"{field!r} contains half of a surrogate pair")
    if not is_readable(value):
        raise RowError("empty text", f"{field!r} is {record.values[field]!r:.40}")
    return value


def _target(record: Record, task: Task, text: str | tuple[str, str]) -> Any:
    value = _value(record, task.label_field)
    try:
        return get_kind(task.kind).codec.encode(value, task, text if isinstance(text, str) else "")
    except (ValueError, OverflowError, RecursionError) as error:
        raise RowError("bad label", str(error)) from None


def overlap_notes(train: Examples, dev: Examples) -> tuple[str, ...]:
    """Return a note on how many dev texts or pairs are also train data, whose labels a head has seen; empty if none.

    Texts that differ only in white space or in case count as the same.
    """
    seen = {_normalized(text) for text in train.texts}
    count = sum(_normalized(text) in seen for text in dev.texts)
    return (f"{count:,} of {len(dev):,} dev texts are also in train",) if count else ()


def _normalized(text: str | tuple[str, str]) -> tuple[str, ...]:
    parts = (text,) if isinstance(text, str) else text
    return tuple(" ".join(part.casefold().split()) for part in parts)


def targets_of(
    kind: Kind,
    encoded: Sequence[Any],
    config: KindConfig,
    texts: Texts,
    tokenizer: Callable[[], Tokenizer],
    max_length: int,
) -> NDArray[Any]:
    """Return the targets of encoded labels, for which a kind that answers by token needs the texts' tokens.

    Args:
        kind: The kind.
        encoded: The encoded labels.
        config: The task's configuration.
        texts: The texts.
        tokenizer: Creates the tokenizer; called only if the kind needs it.
        max_length: The length at which texts are truncated, in tokens.

    Returns:
        *Shape:* (texts, ...)
    """
    offsets = token_offsets(tokenizer(), texts, max_length) if kind.by_token else None
    return kind.codec.targets(encoded, config, offsets)


def token_offsets(tokenizer: Tokenizer, texts: Texts, max_length: int) -> Offsets:
    """Return the start and the end of each token in its text, in characters, as the tokenizer model serves them.

    Tokens that are in no word, such as special tokens and blanks, have the same start and end.

    Args:
        tokenizer: A tokenizer that nothing else uses: its truncation is set.
        texts: The texts.
        max_length: The length at which they are truncated, in tokens.
    """
    tokenizer.enable_truncation(max_length)
    found: list[list[tuple[int, int]]] = []
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        some = list(texts[start : start + _TOKENIZER_BATCH])
        for text, row in zip(some, tokenizer.encode_batch(some), strict=True):
            places = token_places(row, text if isinstance(text, str) else text[0])
            found.append([(0, 0) if place is None else place[1:] for place in places])
    return found
