"""Spans of words as tags: BIO, in which heads answer, and BILOU, in which data may be written too.

Sources: Ramshaw and Marcus 1995 for tags of inside, outside and beginning. They write B- only between two spans that
touch; here every span begins with B-. Ratinov and Roth 2009 for BILOU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scheme = Literal["BIO", "BILOU"]
OUTSIDE = "O"

Span = tuple[int, int, str]
"""The places of a span's first and last word or token, and its type."""


@dataclass(frozen=True)
class WordSpans:
    """The spans of a text whose words are known by their places, in place of one tag for each word between blanks.

    Attributes:
        words: The start and the end of each word, in characters.
        spans: The spans, in order.
    """

    words: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]


# The letters that may follow a letter within one span; all others begin something new.
_CONTINUES = {"BIO": {"B": "I", "I": "I"}, "BILOU": {"B": "IL", "I": "IL"}}
_ENDS = {"BIO": "BIO", "BILOU": "LUO"}
_BEGINS = {"BIO": "BO", "BILOU": "BUO"}


def read_spans(tags: Sequence[str], types: Sequence[str], scheme: Scheme) -> list[Span]:
    """Return the spans of a row of data, in order.

    Raises:
        ValueError: A tag is unknown, or cannot follow the tag before it; the message names the first one.
    """
    spans: list[Span] = []
    before, kind_before, first = OUTSIDE, "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, _, kind = tag.partition("-")
        at_end = place == len(tags)
        if not at_end:
            _check_known(tag, place, types, scheme)
        continues = letter in _CONTINUES[scheme].get(before, "") and kind == kind_before
        if not continues:
            if before not in _ENDS[scheme]:
                found = "the end" if at_end else repr(tag)
                raise ValueError(f"tag {place}: {before}-{kind_before} is followed by {found} in {scheme}")
            if letter not in _BEGINS[scheme]:
                after = "the beginning" if place == 0 else repr(tags[place - 1])
                raise ValueError(f"tag {place + 1}: {tag!r} after {after}: there is no B-{kind} before it")
            if before != OUTSIDE:
                spans.append((first, place - 1, kind_before))
            first = place
        before, kind_before = letter, kind
    return spans


def _check_known(tag: str, place: int, types: Sequence[str], scheme: Scheme) -> None:
    letter, _, kind = tag.partition("-")
    known = tag == OUTSIDE or (letter in scheme.replace(OUTSIDE, "") and len(letter) == 1 and kind in types)
    if not known:
        letters = ", ".join(f"{one}-..." for one in scheme.replace(OUTSIDE, ""))
        shown = ", ".join(types[:8]) + (", ..." if len(types) > 8 else "")
        raise ValueError(f"tag {place + 1}: {tag!r:.60} is not known; allowed are O, and {letters} with {shown}")


def bio_tags(types: Sequence[str]) -> tuple[str, ...]:
    """Return the tags in the order of a head's outputs: O, then B- and I- of each type."""
    return (OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BI"))


def tag_indices(count: int, spans: Iterable[Span], types: Sequence[str]) -> NDArray[np.int64]:
    """Return the tags of ``count`` places with these spans, as indices of ``bio_tags``. *Shape:* (count,)."""
    found = np.zeros(count, dtype=np.int64)
    for first, last, kind in spans:
        begin = 1 + 2 * types.index(kind)
        found[first : last + 1] = begin + 1
        found[first] = begin
    return found


def spans_of(indices: Sequence[int], types: Sequence[str]) -> list[Span]:
    """Return the spans of predicted tags. An I- without its B- begins a span, as in the usual evaluation of spans."""
    spans: list[Span] = []
    before = 0
    for place, index in enumerate(indices):
        continues = index > 0 and index % 2 == 0 and before in (index, index - 1)
        if continues:
            first, _, kind = spans[-1]
            spans[-1] = (first, place, kind)
        elif index > 0:
            spans.append((place, place, types[(index - 1) // 2]))
        before = max(index, 0)
    return spans


def forbidden_transitions(types: int) -> NDArray[np.bool_]:
    """Return which tag must not follow which: an I- follows only the B- or I- of its type. *Shape:* (tags, tags)."""
    tags = 1 + 2 * types
    found = np.zeros((tags, tags), dtype=np.bool_)
    for inside in range(2, tags, 2):
        found[:, inside] = True
        found[[inside - 1, inside], inside] = False
    return found
