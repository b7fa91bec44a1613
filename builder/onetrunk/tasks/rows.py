"""The rows of a data file, checked: whole texts and encoded labels, and what is wrong with all others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from onetrunk.protocol.errors import counted, did_you_mean
from onetrunk.protocol.words import is_readable
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.multilabel import MULTILABEL
from onetrunk.tasks.kinds.soft import COUNTS, PROBABILITIES, SOFT_COLUMNS, read_soft, soft_notes
from onetrunk.tasks.labels import BadLabel, read_labels
from onetrunk.tasks.records import BrokenLine, Record, RowError, RowErrors, Unit, is_not_utf8
from onetrunk.tasks.task import Task

Text = str | tuple[str, str]

_ONES, _ZEROS = ("1", "1.0", "true"), ("0", "0.0", "false", "")
_SHOWN = 3
_WHOLE_COLUMNS = (
    "its fields are whole columns, and a row is an object of its own: pandas writes them so with "
    'to_json(..., orient="records", lines=True)'
)


@dataclass(frozen=True)
class Rows:
    """The rows of a data file.

    Attributes:
        texts: One text for each row that can be used, or both texts of a pair.
        targets: Their labels, encoded.
        errors: All other rows.
        notes: What a user should know about how the rows were read.
        hints: What may be done about columns and labels that were not found.
        no_column: What is wrong with all rows, if it is that no row has a column that is read.
    """

    texts: list[Text]
    targets: list[Any]
    errors: RowErrors
    notes: list[str]
    hints: list[str]
    no_column: str | None = None


def check_rows(task: Task, records: Iterable[Record | BrokenLine]) -> Rows:
    """Check the rows of a data file.

    Args:
        task: The task.
        records: The rows.
    """
    columns, errors = _Columns(task), RowErrors()
    records = iter(records)
    ahead = list(itertools.islice(records, 2))
    only = ahead[0] if len(ahead) == 1 else None
    if isinstance(only, Record) and columns.are_whole(only):
        ahead = [BrokenLine(only.line, _WHOLE_COLUMNS, unit=only.unit)]
    texts: list[Text] = []
    labels: list[object] = []
    lines: list[int] = []
    unit: Unit = "line"
    for record in itertools.chain(ahead, records):
        unit = record.unit
        if isinstance(record, BrokenLine):
            errors.add_broken(record)
            continue
        try:
            text: Text = columns.text(record, task.text_field)
            if task.form == "pair":
                text = (text, columns.text(record, task.text_pair_field))  # type: ignore[assignment]
            label = columns.label(record)
        except RowError as error:
            errors.add(record.place, error.fault, error.why)
            continue
        texts.append(text)
        labels.append(label)
        lines.append(record.line)
    read = read_labels(labels, task, texts, lambda row: f"{unit} {lines[row]}")
    del labels
    kept, targets, kept_lines = [], [], []
    for text, value, line in zip(texts, read.values, lines, strict=True):
        try:
            targets.append(_encoded(value, task, text))
        except RowError as error:
            errors.add(f"{unit} {line}", error.fault, error.why)
            continue
        kept.append(text)
        kept_lines.append(line)
    codec = get_kind(task.kind).codec
    accepts = codec.accepts_soft
    soft = soft_notes(read.values, accepts == "one", labels=codec.uses_labels) if accepts is not None else []
    notes = [*columns.notes(), *soft, *read.notes, *_contradictions(task, kept, targets, kept_lines, unit)]
    hints = [hint for hint in (columns.hint(), read.hint) if hint is not None]
    no_column = columns.missing() if set(errors.counts) == {"missing field"} else None
    return Rows(kept, targets, errors, notes, hints, no_column)


def text_of(value: object, column: str, read: Callable[[object], str]) -> str:
    """Return the text in a cell of a data file.

    Args:
        value: The cell.
        column: Its column, for messages.
        read: Returns the text; it raises a ``ValueError`` that says what was found in its place.

    Raises:
        RowError: There is no text that a tokenizer could read.
    """
    if value is None:
        raise RowError("missing field", f"{column!r:.60} is null")
    try:
        text = read(value)
    except ValueError as error:
        raise RowError("not a text", f"{column!r:.60} {error}") from None
    if is_not_utf8(text):
        raise RowError("not a text", f"{column!r:.60} contains half of a surrogate pair")
    if not is_readable(text):
        raise RowError("empty text", f"{column!r:.60} is {value!a:.40}")
    return text


def _encoded(value: object, task: Task, text: Text) -> Any:
    if isinstance(value, BadLabel):
        raise RowError("bad label", value.why)
    try:
        return get_kind(task.kind).codec.encode(value, task, text if isinstance(text, str) else "")
    except (ValueError, OverflowError, RecursionError) as error:
        raise RowError("bad label", str(error)) from None


class _Columns:
    """Finds the texts and the label of a row: by the exact names of their columns, or else without case and blanks."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._names: dict[str, str] = {}
        fields = (task.text_field, *((task.text_pair_field,) if task.form == "pair" else ()), task.label_field)
        # Of two fields whose names differ only in case, both would be found in one column.
        self._only_exact = {key for key, named in _by_key(fields).items() if len(named) > 1}
        self._one_hot = False
        self._there: set[str] = set()
        # What was found where a column was first missing.
        self._missing: dict[str, str] = {}
        self._accepts_soft = get_kind(task.kind).codec.accepts_soft
        self._also_soft = self._both_soft = 0
        self._no_header = False
        # The columns of the last row, and those of them that are a label's own.
        self._own: tuple[tuple[str, ...], dict[str, str]] = ((), {})

    def are_whole(self, record: Record) -> bool:
        """Return whether the only row of a file has all texts in one field and all labels in another."""
        text, label = (
            record.values.get(self._name(record, field) or "")
            for field in (self._task.text_field, self._task.label_field)
        )
        if isinstance(text, dict):
            return True
        if not isinstance(text, list) or not isinstance(label, list) or len(text) != len(label) or len(text) < 2:
            return False
        # One text as a list of words looks the same, and has a tag, or the label of an annotator, for each by chance.
        return any(isinstance(one, list) or (isinstance(one, str) and len(one.split()) > 1) for one in text)

    def text(self, record: Record, field: str) -> str:
        name, value = self._value(record, field)
        return text_of(value, name, get_kind(self._task.kind).codec.read_text)

    def label(self, record: Record) -> object:
        field = self._task.label_field
        name = self._name(record, field)
        soft = self._soft_column(record)
        if name is None and soft is None and (ones := self._marked(record)) is not None:
            return ones
        if soft is not None and (name is None or record.values[name] is None):
            return self._read_soft(record.values[soft], soft, f"no {field!r}, and " if name is None else "")
        name, value = self._value(record, field)
        if value is None and self._task.empty_label is None:
            raise RowError("missing field", f"{name!r} is null")
        self._also_soft += soft is not None
        return self._read_soft(value, name)

    def _soft_column(self, record: Record) -> str | None:
        """Return the column of soft labels beside that of labels, if there is one."""
        if self._accepts_soft is None:
            return None
        others = [one for one in SOFT_COLUMNS if column_key(one) != column_key(self._task.label_field)]
        there = [one for one in others if one in record.values]
        filled = [one for one in there if record.values[one] not in (None, "")]
        self._both_soft += len(filled) > 1
        return next(iter(filled or there), None)

    def _read_soft(self, value: object, column: str, otherwise: str = "") -> object:
        if self._accepts_soft is None:
            return value
        try:
            return read_soft(value, column, one_of=self._accepts_soft == "one")
        except ValueError as error:
            raise RowError("bad label", f"{otherwise}{error}") from None

    def _value(self, record: Record, field: str) -> tuple[str, object]:
        name = self._name(record, field)
        if name is None:
            raise self._no_column(record, field=field)
        self._there.add(field)
        return name, record.values[name]

    def _no_column(self, record: Record, more: str = "", field: str | None = None) -> RowError:
        field = field or self._task.label_field
        there = f"there are: {', '.join(list(record.values)[:6])!s:.200}{more}"
        if field not in self._missing:
            self._missing[field] = f"no column {field!r:.60}{did_you_mean(field, record.values)}; {there}"
        known = (self._name(record, one) for one in (self._task.text_field, self._task.label_field))
        is_table = all(isinstance(value, str) for value in record.values.values())
        self._no_header = is_table and not any(name is not None for name in known)
        return RowError("missing field", f"no {field!r}; {there}")

    def _name(self, record: Record, field: str) -> str | None:
        """Return the name of a column as the row spells it."""
        if field in record.values:
            return field
        if (name := self._names.get(field)) in record.values:
            return name
        if column_key(field) in self._only_exact:
            return None
        found = [name for name in record.values if column_key(name) == column_key(field)]
        if len(found) != 1:
            return None
        self._names[field] = found[0]
        return found[0]

    def _marked(self, record: Record) -> object | None:
        """Return the labels whose own columns have a 1; None if no label of the task has a column of its own.

        Raises:
            RowError: Only some of the labels have one, a cell is not 0 or 1, or not exactly one is 1 though one holds.
        """
        if not get_kind(self._task.kind).codec.uses_labels or not (columns := self._own_columns(record)):
            return None
        for label in self._task.labels or ():
            if label not in columns:
                there = next(iter(columns.values()))
                raise self._no_column(record, f"; {there!r:.40} is one of a label, and {label!r:.40} has none")
            if _cell(record, columns[label]) not in (*_ONES, *_ZEROS):
                found = f"{columns[label]!r:.40} has {record.values[columns[label]]!r:.40}"
                raise self._no_column(record, f"; {found}, and a label's own column has 0 or 1")
        self._one_hot = True
        self._there.add(self._task.label_field)
        marked = [label for label, column in columns.items() if _cell(record, column) in _ONES]
        if self._task.kind == MULTILABEL.name:
            return marked
        if len(marked) != 1:
            raise RowError("bad label", f"{len(marked)} of the labels' columns have a 1, and one should")
        return marked[0]

    def _own_columns(self, record: Record) -> dict[str, str]:
        """Return the columns of the labels that have one."""
        names = tuple(record.values)
        if names != self._own[0]:
            texts = {column_key(one) for one in (self._task.text_field, self._task.text_pair_field)}
            labels = [label for label in self._task.labels or () if column_key(label) not in texts]
            exact = {label for label in labels if label in record.values}
            # What is found without case must be one column, and that of one label.
            columns, wanted = _by_key(set(names) - exact), _by_key(set(labels) - exact)
            found: dict[str, str] = {}
            for label in labels:
                there = columns.get(key := column_key(label), [])
                if label in exact:
                    found[label] = label
                elif len(there) == len(wanted[key]) == 1:
                    found[label] = there[0]
            self._own = (names, found)
        return self._own[1]

    def missing(self) -> str | None:
        """Return what was found in the place of a column that no row has, and what to do; None if there is none."""
        first = next((found for field, found in self._missing.items() if field not in self._there), None)
        return None if first is None else f"{first}; {self.hint()}"

    def hint(self) -> str | None:
        """Return which keys name the columns that no row has; None if each is in some row."""
        never = self._missing.keys() - self._there
        keys = [key for key in ("text_field", "text_pair_field", "label_field") if getattr(self._task, key) in never]
        if not keys:
            return None
        # A table without a header has its first row in the place of all names.
        header = "; is the first line of the table its header?" if self._no_header else ""
        return f"{', '.join(keys)} in the task file names the column{header}"

    def notes(self) -> list[str]:
        label, found = self._task.label_field, []
        if self._one_hot:
            found.append(f"there is no column {label!r:.40}: labels are those whose own columns have a 1")
        if self._also_soft:
            found.append(
                f"{counted(self._also_soft, 'row has', 'rows have')} both {label!r:.40} and soft labels: the first is "
                "used; label_field in the task file names another"
            )
        if self._both_soft:
            have = counted(self._both_soft, "row has", "rows have")
            found.append(f"{have} both {PROBABILITIES} and {COUNTS}: the first are used")
        return found


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(column_key(name), []).append(name)
    return found


def _cell(record: Record, column: str) -> str:
    return str(record.values[column]).strip().lower()


def _contradictions(task: Task, texts: list[Text], targets: list[Any], lines: list[int], unit: Unit) -> list[str]:
    """Return a note on texts that occur with different labels, if there are any."""
    if not get_kind(task.kind).codec.uses_labels:
        return []
    first: dict[Text, int] = {}
    differ: Counter[Text] = Counter()
    shown: dict[Text, str] = {}
    for row, text in enumerate(texts):
        before = first.setdefault(text, row)
        if targets[before] != targets[row]:
            differ[text] += 1
            if len(shown) < _SHOWN:
                shown.setdefault(text, f"{unit}s {lines[before]:,} and {lines[row]:,}")
    if not differ:
        return []
    more = "; ..." if len(differ) > len(shown) else ""
    occur = counted(len(differ), "text occurs", "texts occur")
    return [f"{occur} with different labels: {'; '.join(shown.values())}{more}"]
