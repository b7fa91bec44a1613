"""A task's labelled texts, checked at the door: whatever gets past here can be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrunk.files import sha256_file
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.faults import Faults, RowError
from onetrunk.tasks.hub import read_hub
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.location import locate
from onetrunk.tasks.records import BrokenLine, Record, is_not_utf8, read_records
from onetrunk.tasks.task import Split, Task


@dataclass(frozen=True)
class Examples:
    """The rows of one split.

    Attributes:
        source: the file or hub address, as a message names it.
        texts: a text a row, or both texts of a pair.
        targets: the labels, encoded by the task's kind; ``Kind.targets`` makes an array of them.
        sha256: of the file's bytes; of a hub's data, of the rows.
        left_out: how many rows could not be used.
        notes: what a user should know of the rows, such as how many were left out.
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
    """Reads and checks a split.

    Args:
        task: the task.
        split: ``train`` or ``dev``.
        data_root: where relative files are looked for first.
        skip_bad_rows: leave rows out that cannot be used, and say how many, instead of refusing the file.

    Raises:
        UserError: the data cannot be found or read, no row is left, or rows cannot be used: how many, why, and where.
    """
    place = locate(task, split, data_root)
    records: Iterable[Record | BrokenLine]
    if isinstance(place, Path):
        records, sha256 = read_records(place), sha256_file(place)
    else:
        records = list(read_hub(place, split))
        sha256 = hashlib.sha256(json.dumps([record.values for record in records], default=str).encode()).hexdigest()  # type: ignore[union-attr]
    texts, targets, faults = _check(task, records)
    rows = len(targets) + faults.total
    notes = []
    if faults.total:
        told = "\n".join([f"{place}: {faults.total:,} of {rows:,} rows cannot be used:", *faults.lines()])
        if not skip_bad_rows:
            raise UserError(f"{told}\nmend them, or give --skip-bad-rows to go on without them")
        notes.append(f"left out {told}")
    if not targets:
        raise UserError(f"{place}: no rows in it that can be used")
    if absent := get_kind(task.kind).codec.unused_labels(targets, task):
        what = "label" if len(absent) == 1 else "labels"
        notes.append(f"no row of the {split} data has the {what} {', '.join(map(repr, absent))}")
    return Examples(str(place), tuple(texts), tuple(targets), sha256, faults.total, tuple(notes))  # type: ignore[arg-type]


def _check(task: Task, records: Iterable[Record | BrokenLine]) -> tuple[list[str | tuple[str, str]], list[Any], Faults]:
    texts: list[str | tuple[str, str]] = []
    targets: list[Any] = []
    faults = Faults()
    for record in records:
        if isinstance(record, BrokenLine):
            faults.add(record.line, "broken line", record.why)
            continue
        try:
            text: str | tuple[str, str] = _text(record, task.text_field, task)
            if task.form == "pair":
                text = (text, _text(record, task.text_pair_field, task))  # type: ignore[assignment]
            target = _target(record, task, text)
        except RowError as fault:
            faults.add(record.line, fault.sort, fault.why)
            continue
        texts.append(text)
        targets.append(target)
    return texts, targets, faults


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
        raise RowError("not a text", f"{field!r} has half of a surrogate pair in it")
    # Neither blanks nor control characters leave the tokenizer anything to read.
    if not any(character.isprintable() and character != " " for character in value):
        raise RowError("empty text", f"{field!r} is {record.values[field]!r:.40}")
    return value


def _target(record: Record, task: Task, text: str | tuple[str, str]) -> Any:
    value = _value(record, task.label_field)
    try:
        return get_kind(task.kind).codec.encode(value, task, text if isinstance(text, str) else "")
    except (ValueError, OverflowError, RecursionError) as error:
        raise RowError("bad label", str(error)) from None
