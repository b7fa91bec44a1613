"""How the labels of a data file are spelled, which only all of them together tell.

Labels may be written as numbers, with another case, or as tags of another scheme. What a file means is decided once for
all of its rows, and told in a note; a row that fits no reading is refused as it is.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onetrunk.protocol.errors import counted, did_you_mean
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import label_spellings, listed, written
from onetrunk.tasks.kinds.classification import CLASSIFICATION
from onetrunk.tasks.kinds.multilabel import MULTILABEL, SEPARATOR, split_labels
from onetrunk.tasks.kinds.soft import SoftLabel
from onetrunk.tasks.kinds.span_tags import bio_tags
from onetrunk.tasks.kinds.tagging import TAGGING
from onetrunk.tasks.offset_spans import Alignment, OffsetSpan, is_spans, read_offsets
from onetrunk.tasks.task import Task, folded

_COMMA = re.compile(r"-?\d+(,\d+)?")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(,\d{3})?")
_WHOLE = re.compile(r"-?\d{1,9}(\.0+)?")
_SHOWN = 8
# So many rows are named anyway.
_FEW = 3
_AMBIGUOUS = (
    "lists of 0 and 1 for two labels say which hold only if some row has [0, 0] or [1, 1]: write the names of the "
    "labels, or labels_from = 0 in the task file if they are positions"
)


@dataclass(frozen=True)
class BadLabel:
    """A label that cannot be used.

    Attributes:
        why: What is wrong with it.
    """

    why: str


@dataclass(frozen=True)
class ReadLabels:
    """The labels of a file.

    Attributes:
        values: A label for each row, in the task's spelling as far as that is known, for ``LabelCodec.encode``.
        notes: What a user should know about how they were read.
        hint: What may be done about labels that the task does not have; None if there are none.
    """

    values: list[object]
    notes: list[str]
    hint: str | None


def read_labels(values: Sequence[object], task: Task, texts: Sequence[Any], place: Callable[[int], str]) -> ReadLabels:
    """Read the labels of a file.

    Args:
        values: The label of each row, as the file has it.
        task: The task.
        texts: The text of each row.
        place: Returns where a row is, for notes.
    """
    if not get_kind(task.kind).codec.uses_labels:
        return _read_numbers(values) if task.range is not None else ReadLabels(list(values), [], None)
    if task.kind == TAGGING.name:
        return _read_tags(values, task, texts, place)
    if task.kind == MULTILABEL.name:
        lists = [_list(value, task) for value in values]
        vectors = _are_vectors(lists, task)
        if vectors is None:
            why = "its list may be one of positions, or say for each label whether it holds"
            return ReadLabels([BadLabel(why)] * len(lists), [], _AMBIGUOUS)
        if vectors:
            return ReadLabels(
                [_of_vector(row, task) if isinstance(row, list) else row for row in lists],
                ["labels are lists of 0 and 1, one for each label of the task, and those with a 1 hold"],
                None,
            )
        spelling = _Spelling(
            task,
            Counter(one for labels in lists for one in _atoms(labels if isinstance(labels, list) else [labels])),
        )
        found: list[object] = [
            [spelling.of(one) for one in labels] if isinstance(labels, list) else spelling.of(labels)
            for labels in lists
        ]
        return ReadLabels(found, spelling.notes(), _vector_hint(lists, task) or spelling.hint())
    if values and all(_is_one_hot(value, task) for value in values):
        why = "its list has one 1 and else 0"
        hint = "lists of 0 and 1, one for each label: write the name of the label that has the 1, or its number from 0"
        return ReadLabels([BadLabel(why)] * len(values), [], hint)
    single = [_single(value) for value in values]
    spelling = _Spelling(task, Counter(_atoms(single)))
    return ReadLabels([spelling.of(one) for one in single], spelling.notes(), spelling.hint())


def _read_numbers(values: Sequence[object]) -> ReadLabels:
    """Return numbers with a point in place of a comma, if a spreadsheet wrote all of them with a comma."""
    texts = [value for value in values if isinstance(value, str)]
    commas = [text for text in texts if "," in text]
    if not commas or not all(_COMMA.fullmatch(text.strip()) for text in texts):
        return ReadLabels(list(values), [], None)
    if all(_THOUSANDS.fullmatch(text.strip()) for text in commas):
        meant = commas[0].strip()
        hint = f"{meant} may be {meant.replace(',', '.')} or {meant.replace(',', '')}: write all numbers with a point"
        return ReadLabels(list(values), [], hint)
    found = [value.replace(",", ".") if isinstance(value, str) else value for value in values]
    return ReadLabels(found, ["labels have a comma where others write a point: 3,5 is read as 3.5"], None)


def is_empty(value: object) -> bool:
    """Return whether a label is null, not a number, blank, or a list of none."""
    return (
        value is None
        or value == []
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _single(value: object) -> object:
    # Annotation tools write a list even where one label is asked for.
    found = _as_list(value)
    if found == []:
        return ""
    return found[0] if isinstance(found, list) and len(found) == 1 else value


def _as_list(value: object) -> object:
    """Return the list that a cell holds; anything else as it is."""
    found = listed(value) if isinstance(value, str) else None
    return value if found is None else found


def _list(value: object, task: Task) -> object:
    return split_labels(value, task.label_separator or SEPARATOR) if isinstance(value, str) else value


def _are_vectors(rows: Sequence[object], task: Task) -> bool | None:
    """Return whether every row has a 0 or a 1 for each label of the task; None if they may as well be positions.

    Train and dev data are read one by one, so what one of them is read as must not depend on which rows it has.
    """
    given = [row for row in rows if not isinstance(row, SoftLabel)]
    if not _may_be_vectors(task) or not given or not all(_is_vector(row, task) for row in given):
        return False
    return True if any(map(_is_no_position, given)) else None


def _may_be_vectors(task: Task) -> bool:
    # A list of one number is its label, and labels_from says that numbers are positions.
    return task.labels_from is None and len(task.labels or ()) > 1


def _is_no_position(row: object) -> bool:
    """Return whether a list of numbers can be no list of positions: a label is in it once, and no boolean is one."""
    return isinstance(row, list) and (len(set(row)) < len(row) or any(isinstance(one, bool) for one in row))


def _is_vector(row: object, task: Task) -> bool:
    labels = task.labels or ()
    return (
        isinstance(row, list)
        and len(row) == len(labels)
        and all(isinstance(one, (int, float)) and one in (0, 1) for one in row)
        and not any(name in labels for one in row for name in label_spellings(one))
    )


def _vector_hint(rows: Sequence[object], task: Task) -> str | None:
    """Return why lists are not read as vectors, if one of them can be nothing else: no label is in a row twice."""
    count = len(task.labels or ())
    if count < 2 or not any(_is_vector(row, task) and _is_no_position(row) for row in rows):
        return None
    if not _may_be_vectors(task):
        return "lists of 0 and 1 say which labels hold only without labels_from, which says that they are positions"
    return (
        f"lists of 0 and 1 say which labels hold only if every row has one, with {count} numbers, as there are labels"
    )


def _of_vector(row: Sequence[object], task: Task) -> list[str]:
    return [label for label, one in zip(task.labels or (), row, strict=True) if one]


def _is_one_hot(value: object, task: Task) -> bool:
    """Return whether a row has as many votes as the task has labels, one of them for 1 and all others for 0."""
    labels = task.labels or ()
    return (
        isinstance(value, SoftLabel)
        and value.form == "votes"
        and not {"0", "1"} & set(labels)
        and set(value.weights) == {0, 1}
        and math.isclose(value.weights[1], 1 / len(labels))
    )


def _atoms(values: Sequence[object]) -> list[object]:
    """Return the labels among some values, and those of soft labels."""
    found: list[object] = []
    for value in values:
        if isinstance(value, SoftLabel):
            found += value.weights
        elif isinstance(value, (str, int, float)):
            found.append(value)
    return found


class _Spelling:
    """The spelling of labels in a file.

    Args:
        task: The task.
        found: How often each label occurs in the file.
        names: The names by position, for labels that are written as numbers.
    """

    def __init__(self, task: Task, found: Counter[object], names: Sequence[str] | None = None) -> None:
        self._task, self._found = task, found
        self._labels = task.labels or ()
        self._names = tuple(self._labels if names is None else names)
        self._normal = {unicodedata.normalize("NFC", label): label for label in self._labels}
        self._folded = {folded(label): label for label in self._labels}
        # Booleans are numbers to Python, so the kind of value belongs to the key.
        self._table = {(type(one), one): self._spelled(one) for one in found}
        # An empty label tells nothing of how the others are written.
        filled: list[Any] = [one for one in found if not is_empty(one)]
        numbers = bool(filled) and not any(self._table.values()) and all(map(self._is_position, filled))
        # Where no row has a 0, labels that are counted from 1 look the same.
        self._unclear = numbers and task.labels_from is None and all(map(float, filled))
        self._positions = numbers and not self._unclear

    def of(self, label: object) -> object:
        """Return the task's spelling of a label, or the label itself."""
        if isinstance(label, SoftLabel):
            return label.renamed(self.of)
        if self._task.empty_label is not None and is_empty(label):
            return self._task.empty_label
        if not isinstance(label, (str, int, float)):
            return label
        if self._positions and self._is_position(label):
            return self._names[self._position(label)]
        return self._table.get((type(label), label)) or label

    def _is_position(self, label: Any, first: int | None = None) -> bool:
        whole = not isinstance(label, bool) and _WHOLE.fullmatch(str(label).strip())
        return bool(whole) and 0 <= self._position(label, first) < len(self._names)

    def _position(self, label: Any, first: int | None = None) -> int:
        return int(float(label)) - (first if first is not None else self._task.labels_from or 0)

    def _spelled(self, label: Any) -> str | None:
        exact = next((one for one in label_spellings(label) if one in self._labels), None)
        if exact is not None or not isinstance(label, str):
            return exact
        if _WHOLE.fullmatch(label.strip()) and str(int(float(label))) in self._labels:
            return str(int(float(label)))
        normal = self._normal.get(unicodedata.normalize("NFC", label))
        return normal or (self._folded.get(folded(label)) if self._task.fold_labels else None)

    def notes(self) -> list[str]:
        """Return how labels were read that are not written as in the task file."""
        if self._positions:
            named = enumerate(self._names[:_SHOWN], start=self._task.labels_from or 0)
            shown = ", ".join(f"{place} is {name!r:.40}" for place, name in named)
            more = ", ..." if len(self._names) > _SHOWN else ""
            return [f"labels are numbers, and read as positions among those of the task: {shown}{more}"]
        composed, others = [], []
        for one, count in self._found.items():
            name, own = self._table[type(one), one], label_spellings(one)[0]
            if name is None or name == own:
                continue
            # They would look equal beside each other.
            if unicodedata.normalize("NFC", own) == unicodedata.normalize("NFC", name):
                composed.append(f"{name!r:.40} ({count:,})")
            else:
                others.append(f"{written(one)} as {name!r:.40} ({count:,})")
        return [
            f"{which}, with their rows: {', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}"
            for which, shown in (
                ("labels that are spelled in another way are read", others),
                (
                    "labels whose accents are composed in another way than in the task file (Unicode NFC or NFD) are "
                    "read",
                    composed,
                ),
            )
            if shown
        ]

    def hint(self) -> str | None:
        """Return what may be done about the labels that the task does not have, with their counts by spelling."""
        unknown = Counter({one: count for one, count in self._found.items() if self.of(one) not in self._known()})
        if not unknown:
            return None
        advice = self._advice(list(unknown))
        if not advice and sum(unknown.values()) <= _FEW:
            return None
        shown = ", ".join(f"{written(one)} ({count:,})" for one, count in unknown.most_common(_SHOWN))
        more = f", and {counted(len(unknown) - _SHOWN, 'other', 'others')}" if len(unknown) > _SHOWN else ""
        return f"labels that the task does not have, with their rows: {shown}{more}{advice}"

    def _known(self) -> frozenset[str]:
        return frozenset((*self._labels, *self._names))

    def _advice(self, unknown: list[Any]) -> str:
        texts = [one for one in unknown if isinstance(one, str)]
        near = {folded(one) for one in texts} & set(self._folded)
        if near:
            meant = ", ".join(sorted(label for label in self._labels if folded(label) in near)[:_SHOWN])
            if len(self._folded) == len(self._labels):
                return f" (did you mean {meant}?): fold_labels = true in the task file ignores case and blanks"
            return f" (did you mean {meant}?): write them so, as labels of the task differ only in case or blanks"
        if self._unclear:
            return (
                ": they may be counted from 0 or from 1, as none is 0: labels_from = 0 or labels_from = 1 in the task "
                "file says which"
            )
        if all(_WHOLE.fullmatch(str(one)) for one in unknown):
            return self._advice_on_numbers()
        for pair in (["false", "true"], ["False", "True"], ["FALSE", "TRUE"]):
            if all(name in pair for one in unknown for name in label_spellings(one)[:1]):
                return f": if these are the labels, name them so in the task file: labels = {json.dumps(pair)}"
        if any(is_empty(one) for one in unknown) and self._task.kind == CLASSIFICATION.name:
            return ': empty_label = "..." in the task file names the label that an empty one stands for'
        if any(self._all_known(listed(one) or [one]) for one in texts):
            return ': if a text may have several labels, give kind = "multilabel"'
        for separator in ("|", ",", ";"):
            if any(separator in one and self._all_known(one.split(separator)) for one in texts):
                if self._task.kind == MULTILABEL.name:
                    return f": label_separator = {json.dumps(separator)} in the task file separates them there"
                return ': if a text may have several labels, give kind = "multilabel"'
        return did_you_mean(texts[0], self._labels) if texts else ""

    def _advice_on_numbers(self) -> str:
        if not self._labels:  # the names are tags
            last = len(self._names) - 1
            return (
                f": numbers of tags are read only if all are from 0 to {last}, for O and then B- and I- of each label "
                f"in turn ({last} is {self._names[last]!r:.40}): labels has all types of tags, in the order of the data"
            )
        first = self._task.labels_from or 0
        other = 1 - first
        filled = [one for one in self._found if not is_empty(one)]
        fits = all(self._is_position(one, other) for one in filled) and not any(self._table.values())
        return (
            ": numbers are read as positions only if all are whole, none is a label of the task, and all are from "
            f"{first} to {first + len(self._names) - 1}"
        ) + (f"; labels_from = {other} counts from {other}" if fits else "")

    def _all_known(self, parts: Sequence[object]) -> bool:
        return all(isinstance(part, str) and folded(part) in self._folded for part in parts)


def _read_tags(values: Sequence[object], task: Task, texts: Sequence[Any], place: Callable[[int], str]) -> ReadLabels:
    values = [_as_list(value) for value in values]
    # A text has a word, and so a tag: where no row has any, they are spans.
    by_offset = any(is_spans(value) for value in values) or all(value == [] for value in values)
    if by_offset:
        return _read_spans(values, task, texts, place)
    rows = [value.split() if isinstance(value, str) else value for value in values]
    tags = Counter(tag for row in rows if isinstance(row, list) for tag in _atoms(row))
    numbers = bool(tags) and not any(isinstance(tag, str) and not _WHOLE.fullmatch(tag) for tag in tags)
    if numbers:
        scheme = task.options.get("scheme", "BIO")
        if scheme != "BIO":
            return ReadLabels(list(rows), [], f"tags are numbers, which are read only in BIO, not in {scheme}")
        of_tags = task.model_copy(update={"labels": (), "labels_from": 0})
        spelling = _Spelling(of_tags, tags, bio_tags(task.labels or ()))
        notes, hint = spelling.notes(), spelling.hint()
        return ReadLabels([_each(row, spelling.of) for row in rows], notes, hint)
    types: Counter[object] = Counter()
    for tag, count in tags.items():
        if (kind := _kind(tag)) is not None:
            types[kind] += count
    spelling = _Spelling(task, types)
    rows = [_each(row, lambda tag: _with_kind(tag, spelling)) for row in rows]
    notes = spelling.notes()
    if task.options.get("scheme", "BIO") == "BIO" and _is_iob1(rows):
        rows = [_to_bio(row) if isinstance(row, list) else row for row in rows]
        notes.append("tags are IOB1, in which B- only divides spans of one type that touch; they are read so")
    return ReadLabels(list(rows), notes, spelling.hint())


def _each(row: object, change: Callable[[object], object]) -> object:
    return [change(one) for one in row] if isinstance(row, list) else row


def _kind(tag: object) -> str | None:
    return tag[2:] if isinstance(tag, str) and tag[1:2] == "-" else None


def _with_kind(tag: object, spelling: _Spelling) -> object:
    kind = _kind(tag)
    return f"{str(tag)[:2]}{spelling.of(kind)}" if kind is not None else tag


def _is_iob1(rows: Sequence[object]) -> bool:
    """Return whether some span begins with I-, and every B- follows a tag of its own type, as only IOB1 has both."""
    begins = False
    for row in rows:
        before: str | None = None
        for tag in row if isinstance(row, list) else ():
            kind = _kind(tag)
            if kind is not None and tag[0] not in "BI":
                return False
            if kind is not None and kind != before:
                if tag[0] == "B":
                    return False
                begins = True
            before = kind
    return begins


def _to_bio(row: list[Any]) -> list[Any]:
    found = []
    before: str | None = None
    for tag in row:
        kind = _kind(tag)
        found.append(f"B-{kind}" if kind is not None and kind != before else tag)
        before = kind
    return found


def _read_spans(values: Sequence[object], task: Task, texts: Sequence[Any], place: Callable[[int], str]) -> ReadLabels:
    rows: list[list[OffsetSpan] | BadLabel] = []
    for value, text in zip(values, texts, strict=True):
        try:
            if value != [] and not is_spans(value):
                raise ValueError(f"{value!r:.60} is not a list of spans, as in other rows")
            rows.append(read_offsets(value, text))  # type: ignore[arg-type]
        except ValueError as error:
            rows.append(BadLabel(str(error)))
    spelling = _Spelling(task, Counter(_atoms([one.label for row in rows if isinstance(row, list) for one in row])))
    alignment = Alignment()
    found: list[object] = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if isinstance(row, BadLabel):
            found.append(row)
            continue
        try:
            spans = [(one.start, one.end, str(spelling.of(one.label))) for one in row]
            found.append(alignment.align(spans, text, place(number)))
        except ValueError as error:
            found.append(BadLabel(str(error)))
    return ReadLabels(found, [*spelling.notes(), *alignment.notes()], spelling.hint())
