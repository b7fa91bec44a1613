"""Spans of words as tags: BIO, in which heads answer, and BILOU, in which data may be written too.

Sources: Ramshaw and Marcus 1995 (tags for inside, outside and beginning; there a B- stands only between two spans that
touch, here every span begins with one), Ratinov and Roth 2009 (BILOU).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scheme = Literal["BIO", "BILOU"]
OUTSIDE = "O"

# (first, last, type): places of a span's first and last word or token.
Span = tuple[int, int, str]

# Which letters may follow a letter within one span; all others begin something new.
_GOES_ON = {"BIO": {"B": "I", "I": "I"}, "BILOU": {"B": "IL", "I": "IL"}}
_ENDS = {"BIO": "BIO", "BILOU": "LUO"}
_BEGINS = {"BIO": "BO", "BILOU": "BUO"}


def read_spans(tags: Sequence[str], types: Sequence[str], scheme: Scheme) -> list[Span]:
    """The spans of a row of data, in their order.

    Raises ValueError with the first tag that is unknown, or that cannot stand where it does.
    """
    spans: list[Span] = []
    before, kind_before, first = OUTSIDE, "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, _, kind = tag.partition("-")
        at_end = place == len(tags)
        if not at_end:
            _check_known(tag, letter, kind, place, types, scheme)
        goes_on = letter in _GOES_ON[scheme].get(before, "") and kind == kind_before
        if not goes_on:
            if before not in _ENDS[scheme]:
                found = "the end" if at_end else repr(tag)
                raise ValueError(f"tag {place}: {before}-{kind_before} is followed by {found} in {scheme}")
            if letter not in _BEGINS[scheme]:
                after = "the beginning" if place == 0 else repr(tags[place - 1])
                raise ValueError(f"tag {place + 1}: {tag!r} after {after}: it has no B-{kind} before it")
            if before != OUTSIDE:
                spans.append((first, place - 1, kind_before))
            first = place
        before, kind_before = letter, kind
    return spans


def _check_known(tag: str, letter: str, kind: str, place: int, types: Sequence[str], scheme: Scheme) -> None:
    fits = tag == OUTSIDE or (letter in scheme.replace(OUTSIDE, "") and len(letter) == 1 and kind in types)
    if not fits:
        letters = ", ".join(f"{one}-..." for one in scheme.replace(OUTSIDE, ""))
        shown = ", ".join(types[:8]) + (", ..." if len(types) > 8 else "")
        raise ValueError(f"tag {place + 1}: {tag!r:.60} is not known; known are O, {letters} with {shown}")


def bio_tags(types: Sequence[str]) -> tuple[str, ...]:
    """The tags in which a head answers, in the order of its outputs: O, then B- and I- of each type."""
    return (OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BI"))


def tag_numbers(count: int, spans: Iterable[Span], types: Sequence[str]) -> NDArray[np.int64]:
    """Spans over so many places as numbers of tags, as ``bio_tags`` counts them. *Shape:* (count,)."""
    found = np.zeros(count, dtype=np.int64)
    for first, last, kind in spans:
        begin = 1 + 2 * types.index(kind)
        found[first : last + 1] = begin + 1
        found[first] = begin
    return found


def spans_of(numbers: Sequence[int], types: Sequence[str]) -> list[Span]:
    """The spans that a head answers with. An I- without its B- begins a span, as in the usual evaluation of spans."""
    spans: list[Span] = []
    before = 0
    for place, number in enumerate(numbers):
        goes_on = number > 0 and number % 2 == 0 and before in (number, number - 1)
        if goes_on:
            first, _, kind = spans[-1]
            spans[-1] = (first, place, kind)
        elif number > 0:
            spans.append((place, place, types[(number - 1) // 2]))
        before = max(number, 0)
    return spans


def forbidden_moves(types: int) -> NDArray[np.bool_]:
    """Which tag may not follow which: an I- comes after the B- or I- of its type only. *Shape:* (tags, tags)."""
    tags = 1 + 2 * types
    found = np.zeros((tags, tags), dtype=np.bool_)
    for inside in range(2, tags, 2):
        found[:, inside] = True
        found[[inside - 1, inside], inside] = False
    return found
