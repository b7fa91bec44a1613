"""Spans of words, each with a type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction, short
from onetrunk.client.kinds.reader import Reader, RowRead
from onetrunk.protocol.ensemble_info import TaskInfo

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word of the text.

    Attributes:
        text: as it stands in the text, with accents and other marks that the tokenizer drops.
        start: its first character.
        end: the character after its last.
        tag: as the task's scheme writes it, such as ``B-artist``; None where nothing of the word was read.
        score: the probability of its first piece's tag; 0 where nothing of it was read.
    """

    text: str
    start: int
    end: int
    tag: str | None
    score: float


@dataclass(frozen=True)
class Span:
    """Words that belong together.

    Attributes:
        type: what they are.
        text: as it stands in the text, blanks included.
        start: its first character.
        end: the character after its last.
        score: the least probability of its words.
    """

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class SpansPrediction(Prediction):
    """Spans and words of a text. ``score`` is the least of all spans', or 1 where there is none.

    Attributes:
        words: all words of the text, those too that were not read; these are whatever stands between blanks.
        spans: in the text's order.
    """

    words: tuple[Word, ...] = ()
    spans: tuple[Span, ...] = ()

    def record(self, top: int | None) -> dict[str, Any]:
        """See Prediction.record; ``top`` means nothing here."""
        spans, words = (
            [asdict(one) | {"score": short(one.score)} for one in some] for some in (self.spans, self.words)
        )
        return {"spans": spans, "words": words}

    def marks(self) -> list[tuple[int, int, str]]:
        """The spans."""
        return [(span.start, span.end, span.type) for span in self.spans]

    def lines(self, top: int) -> list[tuple[str, str]]:
        """A line a span."""
        return [(f"{span.type}: {span.text}", f"{span.score:.3f}") for span in self.spans] or [("(no spans)", "")]


class TaggingReader(Reader):
    """A tag a token, put together to words and spans by where the tokens stand in the text."""

    kind: ClassVar[str] = "tagging"
    about_words: ClassVar[bool] = True

    def fault(self, task: TaskInfo) -> str | None:
        """No types, or tags written in a way that this client does not know."""
        if not task.labels:
            return f"a {task.kind} task without labels"
        scheme = getattr(task, "scheme", None)
        return None if scheme in _LETTERS else f"a {task.kind} task whose scheme is {scheme!r}, not BIO or BILOU"

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Tokens, and number and probability of each one's tag."""
        return (None, 2)

    def read(self, task: TaskInfo, scores: Any, row: RowRead | None = None) -> Prediction:
        """See Reader.read. *Shape of the scores:* (tokens, 2)."""
        assert row is not None, "a task about words is asked with texts"
        pieces = _pieces(np.asarray(scores), row.words)
        spans = _spans(pieces, task.labels or (), row.text)
        words = _words(pieces, spans, task.scheme, row)  # type: ignore[attr-defined]  # fault has looked
        least = min((span.score for span in spans), default=1.0)
        return SpansPrediction(task.name, None, least, {}, words, spans)

    def answers(self, task: TaskInfo) -> str:
        """Its types."""
        return "spans of " + ", ".join(task.labels or ())


# Scheme -> letters of a span's one word, first, inner and last word.
_LETTERS = {"BIO": ("B", "B", "I", "I"), "BILOU": ("U", "B", "I", "L")}


@dataclass
class _Piece:
    word: int
    start: int
    end: int
    tag: int
    score: float


def _pieces(scores: NDArray[Any], words: NDArray[np.int64]) -> list[_Piece]:
    """The tokens that are part of the text. *Shapes:* (tokens, 2), (tokens, 3) of word, start and end."""
    return [
        _Piece(int(word), int(start), int(end), int(tag), float(score))
        for (tag, score), (word, start, end) in zip(scores.tolist(), words.tolist(), strict=False)
        if word >= 0
    ]


def _spans(pieces: Sequence[_Piece], types: Sequence[str], text: str) -> tuple[Span, ...]:
    """Whole words, of whose pieces one or more are in the span; a word is in one span at most, the first.

    So a span that begins inside another one's word begins with the word after it, if it goes on that far.
    """
    found: list[tuple[int, list[_Piece]]] = []
    before, begun = 0, False
    for piece in pieces:
        goes_on = piece.tag > 0 and piece.tag % 2 == 0 and before in (piece.tag, piece.tag - 1)
        begun = begun and goes_on
        if begun:
            found[-1][1].append(piece)
        elif piece.tag > 0 and not (found and found[-1][1][-1].word == piece.word):
            found.append(((piece.tag - 1) // 2, [piece]))
            begun = True
        before = max(piece.tag, 0)
    return tuple(_span(types[kind], some, pieces, text) for kind, some in found)


def _span(kind: str, inside: Sequence[_Piece], pieces: Sequence[_Piece], text: str) -> Span:
    words = {piece.word for piece in inside}
    whole = [piece for piece in pieces if piece.word in words]
    start, end = whole[0].start, whole[-1].end
    return Span(kind, text[start:end], start, end, min(piece.score for piece in inside))


def _words(pieces: Sequence[_Piece], spans: Sequence[Span], scheme: str, row: RowRead) -> tuple[Word, ...]:
    only, first, inner, last = _LETTERS[scheme]
    text = row.text
    found: list[Word] = []
    of_word: dict[int, list[_Piece]] = {}
    for piece in pieces:
        of_word.setdefault(piece.word, []).append(piece)
    for some in of_word.values():
        start, end = some[0].start, some[-1].end
        span = next((span for span in spans if span.start <= start and end <= span.end), None)
        tag = "O"
        if span is not None:
            begins, ends = start == span.start, end == span.end
            letter = only if begins and ends else first if begins else last if ends else inner
            tag = f"{letter}-{span.type}"
        found.append(Word(text[start:end], start, end, tag, some[0].score))
    if not row.truncated:
        return tuple(found)
    # What the tokenizer did not get to: as blanks make words. The first is less than that where the last word that was
    # read ends without a blank, at a hyphen say. What is left of a word that was cut is in that word already.
    cut = _WORD.finditer(text, found[-1].end if found else 0)
    return (*found, *(Word(match[0], match.start(), match.end(), None, 0.0) for match in cut))
