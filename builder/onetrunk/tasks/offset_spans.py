"""Spans that data give by characters, as annotation tools write them, put on the words of their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onetrunk.protocol.words import words_of
from onetrunk.tasks.kinds.span_tags import Span, WordSpans

_SHOWN = 3
_START, _END, _LABEL = ("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "type", "entity")


@dataclass(frozen=True)
class OffsetSpan:
    """A span as data give it.

    Attributes:
        start: Its first character.
        end: The character after its last.
        label: Its type, as the data spell it.
    """

    start: int
    end: int
    label: object


def is_spans(value: object) -> bool:
    """Return whether a label is a list of spans, not of tags."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, (dict, list)) for one in value)


def read_offsets(value: Sequence[Any], text: str) -> list[OffsetSpan]:
    """Return the spans of a row: ``{"start": ..., "end": ..., "label": ...}`` or ``[start, end, label]`` each.

    Label Studio counts characters in UTF-16. It also gives the text of each span, which tells so.

    Raises:
        ValueError: One of them is no span, or is none of this text.
    """
    found = []
    for place, one in enumerate(value, start=1):
        fields = one if isinstance(one, dict) else dict(zip(("start", "end", "label"), one, strict=False))
        start, end, label = (
            next((fields[key] for key in keys if key in fields), None) for keys in (_START, _END, _LABEL)
        )
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if type(start) is not int or type(end) is not int or label is None or isinstance(label, (list, dict)):
            raise ValueError(f"span {place}: {one!r:.60} is not start, end and label")
        said = fields.get("text")
        if isinstance(said, str) and text[max(start, 0) : end] != said:
            start, end = _from_utf16(start, end, text)
            if start < 0 or text[start:end] != said:
                raise ValueError(f"span {place}: its characters are not {said!r:.40}, as it says")
        if not 0 <= start < end <= len(text):
            raise ValueError(f"span {place}: {start} to {end} is no part of a text of {len(text):,} characters")
        found.append(OffsetSpan(start, end, label))
    return found


def _from_utf16(start: int, end: int, text: str) -> tuple[int, int]:
    """Return the characters that places in UTF-16 stand for; -1 if there are none."""
    units = text.encode("utf-16-le", "surrogatepass")
    if not 0 <= start <= end <= len(units) // 2:
        return -1, -1
    before, inside = (units[2 * a : 2 * b].decode("utf-16-le", "replace") for a, b in ((0, start), (start, end)))
    return len(before), len(before) + len(inside)


class Alignment:
    """Puts spans on words, and counts those that begin or end within one: they are widened to whole words."""

    def __init__(self) -> None:
        self._spans = self._widened = 0
        self._first: list[str] = []

    def align(self, spans: Sequence[tuple[int, int, str]], text: str, place: str) -> WordSpans:
        """Return the words of a text, and the spans of words.

        Args:
            spans: Start, end and type of each span, in characters.
            text: The text.
            place: Where the row is, for notes.

        Raises:
            ValueError: A span has no word in it, or shares a word with another.
        """
        words = words_of(text)
        found: list[Span] = []
        for start, end, kind in sorted(spans):
            inside = [place for place, (first, last) in enumerate(words) if last > start and first < end]
            if not inside:
                raise ValueError(f"the span {text[start:end]!r:.40} has no word in it")
            span = (inside[0], inside[-1], kind)
            if found and found[-1] == span:
                continue
            if found and found[-1][1] >= span[0]:
                raise ValueError(f"the span {text[start:end]!r:.40} shares a word with another: a word is in one span")
            found.append(span)
            self._count(text[start:end], text[words[inside[0]][0] : words[inside[-1]][1]], place)
        return WordSpans(tuple(words), tuple(found))

    def _count(self, given: str, whole: str, place: str) -> None:
        self._spans += 1
        if given.strip() != whole:
            self._widened += 1
            if len(self._first) < _SHOWN:
                self._first.append(f"{place} ({given!r:.40} to {whole!r:.40})")

    def notes(self) -> list[str]:
        """Return a note on the spans that were widened, if there are any."""
        if not self._widened:
            return []
        more = "; ..." if self._widened > len(self._first) else ""
        return [
            f"{self._widened:,} of {self._spans:,} spans begin or end within a word, and were widened to whole words: "
            f"{'; '.join(self._first)}{more}"
        ]
