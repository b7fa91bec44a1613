"""Texts without labels: a file of traffic, from which a teacher's answers are learned."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onetrunk.protocol.errors import UserError, did_you_mean
from onetrunk.protocol.words import is_readable
from onetrunk.tasks.data_file import open_data, row_lines
from onetrunk.tasks.formats import read_records
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.kinds.base import text_or_words
from onetrunk.tasks.records import BrokenLine, Reading, Record, Records, RowError, RowErrors
from onetrunk.tasks.rows import Text, text_of
from onetrunk.tasks.task import Task

TEXT_FIELDS = ("text", "sentence", "sentence1", "question", "question1", "premise", "words", "tokens")
PAIR_FIELDS = ("text_pair", "text2", "sentence2", "question2", "hypothesis")
"""The columns that are looked for where none is named, in this order."""

# What names the columns where a command has options for them, and where a task file does.
_OPTIONS = ("--text-field", "--pair-field")
_KEYS = ("text_field in the task file", "text_pair_field in the task file")
_SHOWN = 6


@dataclass(frozen=True)
class TextRows:
    """The texts of a file, each once.

    Attributes:
        source: The file, for messages.
        form: Whether they are texts or pairs.
        texts: The texts, or pairs of texts.
        fields: The columns that they were found in; none for a file of lines.
        notes: What a user should know about how they were read.
    """

    source: str
    form: Literal["single", "pair"]
    texts: tuple[Text, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_texts(
    path: Path,
    *,
    form: Literal["single", "pair"] | None = None,
    text_field: str | None = None,
    pair_field: str | None = None,
    skip_bad_rows: bool = False,
) -> TextRows:
    """Read texts from a file: one a line of a .txt, or a column of any format that holds task data.

    Args:
        path: The file.
        form: Whether to read texts or pairs; None reads pairs if there is a column of second texts.
        text_field: The column of the text; None looks for one of ``TEXT_FIELDS``, or takes the only one there is.
        pair_field: The column of the second text; None looks for one of ``PAIR_FIELDS``.
        skip_bad_rows: Whether rows that cannot be used are left out, with a note, instead of refused.

    Raises:
        UserError: The file cannot be read, has no such column, or has no text; or rows cannot be used.
    """
    wanted = tuple(one for one in (text_field, pair_field) if one is not None)
    reading = Reading(text=wanted or (*TEXT_FIELDS, *PAIR_FIELDS))
    return _read(
        path, reading, form, lambda columns: _fields(path, columns, form, text_field, pair_field), skip_bad_rows
    )


def read_texts_for(task: Task, path: Path, *, skip_bad_rows: bool = False) -> TextRows:
    """Read texts for a task from a file that is read as the task's own data are.

    Args:
        task: The task, which says how files are encoded and quoted. Its columns are taken if the file has them; or else
            those are looked for that ``read_texts`` looks for.
        path: The file.
        skip_bad_rows: Whether rows that cannot be used are left out, with a note, instead of refused.

    Raises:
        UserError: See ``read_texts``.
    """
    wanted = (task.text_field, task.text_pair_field) if task.form == "pair" else (task.text_field,)
    reading = Reading(
        encoding=task.encoding,
        delimiter=task.delimiter,
        quotes=task.quotes,
        text=(*wanted, *TEXT_FIELDS, *PAIR_FIELDS),
    )

    def fields(columns: Sequence[str]) -> tuple[str, ...]:
        return _fields(path, columns, task.form, *_there(columns, task.text_field, task.text_pair_field), _KEYS)

    return _read(path, reading, task.form, fields, skip_bad_rows)


def _read(
    path: Path,
    reading: Reading,
    form: str | None,
    fields_of: Callable[[Sequence[str]], tuple[str, ...]],
    skip_bad_rows: bool,
) -> TextRows:
    errors = RowErrors()
    if path.name.lower().removesuffix(".gz").endswith(".txt"):
        if form == "pair":
            raise UserError(f"{path}: a file of lines has no pairs; give a table or JSON lines with two columns")
        fields: tuple[str, ...] = ()
        found: list[Text] = list(_lines(path, reading, errors))
    else:
        try:
            fields, found = _rows(iter(read_records(path, reading)), fields_of, errors)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file of texts") from None
    notes = [f"{path}: {note}" for note in reading.notes]
    if errors.total:
        hints = [reading.encoding_hint()]
        notes.append(errors.summary(path, used=len(found), hints=hints, skip_bad_rows=skip_bad_rows))
    texts = tuple(dict.fromkeys(found))
    if not texts:
        raise UserError(f"{path}: it has no text: give a file with one text a line, or a column of texts")
    if len(texts) < len(found):
        notes.append(
            f"{path}: {len(found) - len(texts):,} of {len(found):,} texts occur more than once; each is read once"
        )
    return TextRows(str(path), "pair" if len(fields) == 2 else "single", texts, fields, tuple(notes))


def find_columns(
    path: Path, *, form: Literal["single", "pair"], text_field: str | None = None, pair_field: str | None = None
) -> tuple[str, ...]:
    """Return the column of the texts of a data file, and for pairs also that of the second texts.

    Args:
        path: The file, or a folder of ``datasets.save_to_disk``.
        form: Whether to look for texts or pairs.
        text_field: The column that is taken if the file has it; or else, and for None, one of ``TEXT_FIELDS`` is looked
            for.
        pair_field: The same for the second texts, with ``PAIR_FIELDS``.

    Raises:
        UserError: The file cannot be read, or has no such column.
    """
    wanted = tuple(one for one in (text_field, pair_field) if one is not None)
    reading = Reading(split="dev", text=(*wanted, *TEXT_FIELDS, *PAIR_FIELDS))
    try:
        first = next((one for one in read_records(path, reading) if isinstance(one, Record)), None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of labelled texts") from None
    if first is None:
        raise UserError(f"{path}: it has no rows that can be used")
    columns = list(first.values)
    return _fields(path, columns, form, *_there(columns, text_field, pair_field))


def _there(columns: Sequence[str], text_field: str | None, pair_field: str | None) -> tuple[str | None, str | None]:
    """Return each field if there is such a column, or else None."""
    keys = {column_key(name) for name in columns}
    text, pair = (one if one is not None and column_key(one) in keys else None for one in (text_field, pair_field))
    return text, pair


def _lines(path: Path, reading: Reading, errors: RowErrors) -> Iterator[str]:
    number = 0
    try:
        with open_data(path, reading.encoding) as stream:
            for number, line in enumerate(row_lines(stream, path), start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    errors.add_broken(reading.not_decoded(number, line))
                    continue
                # Blank lines are no faults: files end with them.
                if is_readable(text):
                    yield text
                elif text:
                    errors.add(f"line {number}", "empty text", f"{text!a:.40}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of texts") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read beyond line {number}: {error}") from error


def _rows(
    records: Records, fields_of: Callable[[Sequence[str]], tuple[str, ...]], errors: RowErrors
) -> tuple[tuple[str, ...], list[Text]]:
    fields: tuple[str, ...] | None = None
    texts: list[Text] = []
    for record in records:
        if isinstance(record, BrokenLine):
            errors.add_broken(record)
            continue
        if fields is None:
            fields = fields_of(list(record.values))
        try:
            parts = [text_of(record.values.get(field), field, text_or_words) for field in fields]
        except RowError as error:
            errors.add(record.place, error.fault, error.why)
            continue
        texts.append((parts[0], parts[1]) if len(parts) == 2 else parts[0])
    return fields or (), texts


def _fields(
    path: Path,
    columns: Sequence[str],
    form: str | None,
    text_field: str | None,
    pair_field: str | None,
    named_by: tuple[str, str] = _OPTIONS,
) -> tuple[str, ...]:
    by_key = {column_key(name): name for name in columns}

    def find(given: str | None, usual: Sequence[str], option: str) -> str | None:
        if given in columns:
            return given
        for name in (given,) if given is not None else usual:
            if column_key(name) in by_key:
                return by_key[column_key(name)]
        if given is not None:
            found = f"no column {given!r:.60}{did_you_mean(given, columns)}"
            raise UserError(f"{path}: {found}; there are: {_shown(columns)}: give another by {option}")
        return None

    text = find(text_field, TEXT_FIELDS, named_by[0])
    pair = find(pair_field, PAIR_FIELDS, named_by[1]) if form != "single" else None
    if text is None and len(columns) == 1:
        text = columns[0]
    if text is None:
        raise UserError(f"{path}: which column has the texts? there are: {_shown(columns)}: name it by {named_by[0]}")
    if pair is None and form == "pair":
        raise UserError(
            f"{path}: which column has the second texts? there are: {_shown(columns)}: name it by {named_by[1]}"
        )
    return (text,) if pair is None else (text, pair)


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(f"{name:.40}" for name in columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
