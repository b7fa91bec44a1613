"""Soft labels: the probabilities that a model gives to labels, or the votes of several annotators.

A data file has them in place of a label: ``{"bug": 0.8, "question": 0.2}``, a count of votes for each label, or a list
with the label of each annotator. Which of these a value is follows from its column and from its form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import counted
from onetrunk.tasks.records import JsonReader

PROBABILITIES: Final = "probabilities"
COUNTS: Final = "counts"
SOFT_COLUMNS = (PROBABILITIES, COUNTS)
"""The columns that are read where a row has no label in the column of the task."""

SUM_TOLERANCE = 0.05
"""How far the sum of rounded probabilities may be from 1. It is made 1."""

# Beyond this, a sum is not 1 because of 32-bit floats.
_EXACT = 1e-4

Sparse: TypeAlias = tuple[tuple[int, float], ...]
"""Encoded: the index and the probability of each label that has one, by index."""


@dataclass(frozen=True)
class SoftLabel:
    """A label that is not certain.

    Attributes:
        weights: Each label, or number, and its weight. For a task whose texts have one label they sum to 1; else each
            is the probability that the label holds.
        form: What the file has: probabilities, counts, or the label of each annotator.
        renormalised: Whether the sum of the probabilities was not 1, but near enough.
    """

    weights: Mapping[str | int | float, float]
    form: Literal["probabilities", "counts", "votes"]
    renormalised: bool = False

    def renamed(self, spelled: Callable[[object], object]) -> SoftLabel:
        """Return the same label in the task's spelling; two spellings of one label are added up."""
        found: dict[str | int | float, float] = {}
        for label, weight in self.weights.items():
            name = spelled(label)
            known = name if isinstance(name, str) else label
            found[known] = found.get(known, 0.0) + weight
        return SoftLabel(found, self.form, self.renormalised)


def read_soft(value: object, column: str, *, one_of: bool) -> object:
    """Return a value of a data file as a soft label, or unchanged if it is none.

    Args:
        value: The value.
        column: Its column. ``probabilities`` and ``counts`` say what their values are; for another column, a table of
            whole numbers has counts, if the task's texts have one label each, and every other table probabilities.
        one_of: Whether one label holds for each text, so that probabilities sum to 1.

    Raises:
        ValueError: It is a soft label that cannot be used; the message says why.
    """
    named = column.strip().casefold()
    if named in SOFT_COLUMNS and isinstance(value, str):
        value = _parsed(value, named)
    if isinstance(value, dict):
        whole = one_of and all(type(one) is int or one is None for one in value.values())
        counts = named == COUNTS or (named != PROBABILITIES and whole)
        return _counts(value, one_of) if counts else _probabilities(value, one_of)
    if not isinstance(value, list) or named in SOFT_COLUMNS:
        if named in SOFT_COLUMNS:
            raise ValueError(f"{column!r} is {value!r:.60}, not a table of labels and numbers")
        return value
    if one_of and len(value) > 1 and all(isinstance(one, list) for one in value):
        # Annotation tools write a list even where one label is asked for. Whoever gave none is no annotator.
        value = [one for one in value if one]
        if any(len(one) > 1 for one in value):
            return _votes(value, divided=True)
        value = [one[0] for one in value]
    if one_of and len(value) == 1:
        return value[0]
    if one_of:
        return _votes([[one] for one in value]) if value else value
    return _votes(value) if value and all(isinstance(one, list) for one in value) else value


def _parsed(cell: str, column: str) -> object:
    reader = JsonReader()
    try:
        found: object = reader.decode(cell)
    except (ValueError, RecursionError):
        raise ValueError(f"{column!r} is {cell!r:.60}, not a JSON object of labels and numbers") from None
    if reader.repeated is not None:
        raise ValueError(f"{column!r} has {reader.repeated!r:.40} twice")
    return found


def _probabilities(given: Mapping[object, object], one_of: bool) -> SoftLabel:
    weights = {str(label): _number(label, value) for label, value in given.items() if value is not None}
    for label, value in weights.items():
        if value > 1 + SUM_TOLERANCE:
            raise ValueError(
                f"the probability of {label!r:.40} is {value:g}: give a number from 0 to 1, or counts in a column "
                f"{COUNTS!r}"
            )
    if not one_of:
        return SoftLabel({label: min(value, 1.0) for label, value in weights.items()}, PROBABILITIES)
    total = sum(weights.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"the probabilities sum to {total:.4g}, not to 1 (within {SUM_TOLERANCE:g}): "
            + ("some labels are missing" if total < 1 else 'if several labels may hold, give kind = "multilabel"')
        )
    return SoftLabel({label: value / total for label, value in weights.items()}, PROBABILITIES, abs(total - 1) > _EXACT)


def _counts(given: Mapping[object, object], one_of: bool) -> SoftLabel:
    if not one_of:
        raise ValueError(
            "counts do not tell how many annotators there were: give probabilities, or a list with the list of labels "
            "of each annotator"
        )
    weights = {str(label): _number(label, value) for label, value in given.items() if value is not None}
    for label, value in weights.items():
        if not value.is_integer():
            raise ValueError(f"the count of {label!r:.40} is {value:g}, not a whole number")
    total = sum(weights.values())
    if total == 0:
        raise ValueError("no label has a count above 0")
    return SoftLabel({label: value / total for label, value in weights.items()}, COUNTS)


def _number(label: object, value: object) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{label!r:.40} has {value!r:.40}: give a number, 0 or more")
    return number


def _votes(annotators: Sequence[object], *, divided: bool = False) -> SoftLabel:
    """Return the share of annotators who gave each label.

    Args:
        annotators: For each annotator a list of labels, each given once.
        divided: Whether the vote of an annotator is divided among all labels in the list, since only one holds.
    """
    weights: dict[str | int | float, float] = {}
    for labels in annotators:
        assert isinstance(labels, list)
        for label in labels:
            if not isinstance(label, (str, int, float)) or label == "":
                raise ValueError(f"has {label!r:.40} as the label of an annotator")
            weights[label] = weights.get(label, 0.0) + 1 / len(annotators) / (len(labels) if divided else 1)
        if len({(type(label), label) for label in labels}) < len(labels):
            raise ValueError(f"an annotator's labels {labels!r:.60} have one twice")
    return SoftLabel(weights, "votes")


def soft_notes(values: Sequence[object], one_of: bool, *, labels: bool = True) -> list[str]:
    """Return what a user should know about the soft labels of a file; nothing if it has none.

    Args:
        values: The label of each row.
        one_of: Whether one label holds for each text.
        labels: Whether there are labels at all, and not numbers.
    """
    soft = [value for value in values if isinstance(value, SoftLabel)]
    if not soft:
        return []
    forms = {
        PROBABILITIES: "have probabilities",
        COUNTS: "have counts",
        "votes": "have the labels of several annotators",
    }
    found = [
        f"{count:,} of {len(values):,} rows {words}" + (_VOTES_HINT if form == "votes" and one_of and labels else "")
        for form, words in forms.items()
        if (count := sum(value.form == form for value in soft))
    ]
    if changed := sum(value.renormalised for value in soft):
        rows = counted(changed, "row", "rows")
        found.append(f"the probabilities of {rows} sum to 1 only within {SUM_TOLERANCE:g}, and are scaled to it")
    if one_of and labels and (ties := sum(_is_tied(value) for value in soft)):
        have = counted(ties, "row has", "rows have")
        found.append(f"{have} no single likeliest label: metrics take the one that the task names first")
    return found


_VOTES_HINT = ' in place of one label (if a text may have several, give kind = "multilabel")'


def _is_tied(label: SoftLabel) -> bool:
    values = sorted(label.weights.values(), reverse=True)
    return len(values) > 1 and math.isclose(values[0], values[1], rel_tol=1e-6)


def sparse(label: SoftLabel, index: Callable[[object], int]) -> Sparse:
    """Encode a soft label.

    Args:
        label: The soft label.
        index: Returns the index of a label.

    Raises:
        ValueError: ``index`` raises it for a label that the task does not have.
    """
    return tuple(sorted((index(name), weight) for name, weight in label.weights.items()))


def dense(encoded: Sequence[Sparse], labels: int) -> NDArray[np.float32]:
    """Return encoded soft labels as probabilities. *Shape:* (rows, labels)."""
    found = np.zeros((len(encoded), labels), dtype=np.float32)
    for row, pairs in enumerate(encoded):
        for index, weight in pairs:
            found[row, index] += weight
    return found
