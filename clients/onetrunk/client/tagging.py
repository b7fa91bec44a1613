"""The kind ``tagging``: spans of words, each with a type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction, Reader, TokenizedText, six_digits
from onetrunk.protocol.ensemble_info import TaskInfo

_WORD = re.compile(r"\S+")
# Of a text whose end was not read. A text of a megabyte would have half a million words, of a hundred bytes each.
MOST_UNREAD_WORDS = 128


@dataclass(frozen=True)
class Word:
    """A word of the text.

    Attributes:
        text: The word as written, with accents and other marks that the tokenizer drops.
        start: Its first character.
        end: The character after its last.
        tag: The tag in the task's scheme, such as ``B-artist``; None if nothing of the word was read.
        score: The probability of its first token's tag; 0 if nothing of the word was read.
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
        type: Its type, such as ``artist``.
        text: The words as written, blanks included.
        start: Its first character.
        end: The character after its last.
        score: The lowest probability of its tokens.
    """

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class SpansPrediction(Prediction):
    """Spans and words of a text. ``score`` is the lowest score of the spans, or 1 if there is none.

    Attributes:
        words: The words of the text that were read, and behind them the next ones that were not, at most
            `MOST_UNREAD_WORDS`, split at blanks.
        spans: The spans in the order of the text.
    """

    words: tuple[Word, ...] = ()
    spans: tuple[Span, ...] = ()

    def record(self, top: int | None) -> dict[str, Any]:
        """See `Prediction.record`. ``top`` has no meaning here."""
        # `asdict` would take most of the time of an answer with many words.
        spans, words = (
            [vars(one) | {"score": six_digits(one.score)} for one in some] for some in (self.spans, self.words)
        )
        return {"spans": spans, "words": words}

    def marks(self) -> list[tuple[int, int, str]]:
        """Return the spans."""
        return [(span.start, span.end, span.type) for span in self.spans]

    def lines(self, top: int) -> list[tuple[str, str]]:
        """Return a line for each span."""
        return [(f"{span.type}: {span.text}", f"{span.score:.3f}") for span in self.spans] or [("(no spans)", "")]


class TaggingReader(Reader):
    """Reads a tag for each token, and joins tokens to words and spans by their places in the text."""

    kind: ClassVar[str] = "tagging"
    needs_words: ClassVar[bool] = True

    def missing(self, task: TaskInfo) -> str | None:
        """See `Reader.missing`."""
        if not task.labels:
            return f"a {task.kind} task without labels"
        scheme = getattr(task, "scheme", None)
        return None if scheme in _LETTERS else f"a {task.kind} task whose scheme is {scheme!r}, not BIO or BILOU"

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return the number and the probability of the tag of any number of tokens."""
        return (None, 2)

    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """See `Reader.read`. *Shape of the scores:* (tokens, 2)."""
        assert text is not None, "a task that needs words is asked with texts"
        pieces = _pieces(np.asarray(scores), text.words)
        spans = _spans(pieces, task.labels or (), text.text)
        words = _words(pieces, spans, task.scheme, text)  # type: ignore[attr-defined]  # `missing` has looked
        least = min((span.score for span in spans), default=1.0)
        return SpansPrediction(task.name, None, least, {}, words, spans)

    def answers(self, task: TaskInfo) -> str:
        """Return the types of its spans."""
        return "spans of " + ", ".join(task.labels or ())


# Scheme -> the letters of a span's only word, its first, inner and last word.
_LETTERS = {"BIO": ("B", "B", "I", "I"), "BILOU": ("U", "B", "I", "L")}


@dataclass
class _Piece:
    """A token that is part of the text."""

    word: int
    start: int
    end: int
    tag: int
    score: float


def _pieces(scores: NDArray[Any], words: NDArray[np.int64]) -> list[_Piece]:
    """Return the tokens that are part of the text.

    Args:
        scores: Number and probability of each token's tag. *Shape:* (tokens, 2)
        words: Word, start and end of each token. *Shape:* (tokens, 3)
    """
    return [
        _Piece(int(word), int(start), int(end), int(tag), float(score))
        for (tag, score), (word, start, end) in zip(scores.tolist(), words.tolist(), strict=False)
        if word >= 0
    ]


def _spans(pieces: Sequence[_Piece], types: Sequence[str], text: str) -> tuple[Span, ...]:
    """Return the spans, as whole words of which at least one token is in the span.

    A word is in one span at most, the first. So a span that begins inside another span's word begins with the next
    word, if it reaches that far.
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


def _words(pieces: Sequence[_Piece], spans: Sequence[Span], scheme: str, row: TokenizedText) -> tuple[Word, ...]:
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
    # The rest of the text, which the tokenizer did not reach, is split at blanks. If the last word that was read ends
    # without a blank, such as at a hyphen, the first of these words is shorter than that. The rest of a word that was
    # cut is in that word already.
    cut = islice(_WORD.finditer(text, found[-1].end if found else 0), MOST_UNREAD_WORDS)
    return (*found, *(Word(match[0], match.start(), match.end(), None, 0.0) for match in cut))
