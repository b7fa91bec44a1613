"""The kind ``tagging``: spans of words, each with a type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction, Reader, TokenizedText, six_digits
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.words import words_of

_UNREAD = re.compile(r"\S+")
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
        tags: The number of each token's tag, padding included, as the model gave them.
    """

    words: tuple[Word, ...] = ()
    spans: tuple[Span, ...] = ()
    tags: NDArray[Any] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

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
        inside = text.words[text.words[:, 0] >= 0]
        words = words_of(text.text, until=int(inside[:, 2].max(initial=0)))
        numbers = np.asarray(scores)
        pieces = _pieces(numbers, text.words, words)
        marked = _marked_words(pieces)
        spans = tuple(_span(one, task.labels or (), words, text.text) for one in marked)
        tagged = _tagged_words(words, pieces, marked, task, text)
        least = min((span.score for span in spans), default=1.0)
        return SpansPrediction(task.name, None, least, {}, tagged, spans, numbers[:, 0].copy())

    def pool(self, scores: Sequence[NDArray[Any]], tokens: Sequence[int]) -> NDArray[Any]:
        """Return the tags of all windows' tokens, one window after the other. *Shape:* (tokens, 2)."""
        return np.concatenate(scores)

    def answers(self, task: TaskInfo) -> str:
        """Return the types of its spans."""
        return "spans of " + ", ".join(task.labels or ())


# Scheme -> the letters of a span's only word, its first, inner and last word.
_LETTERS = {"BIO": ("B", "B", "I", "I"), "BILOU": ("U", "B", "I", "L")}


@dataclass
class _Piece:
    """The first and the last word that a token is in, and its tag. Of a span: the same of all its tokens together."""

    first: int
    last: int
    tag: int
    score: float


def _pieces(scores: NDArray[Any], tokens: NDArray[np.int64], words: Sequence[tuple[int, int]]) -> list[_Piece]:
    """Return the tokens that are in a word.

    Args:
        scores: Number and probability of each token's tag. *Shape:* (tokens, 2)
        tokens: Word, start and end of each token. Words are counted here instead, since a token may be in several.
            *Shape:* (tokens, 3)
        words: Start and end of each word.
    """
    found, first = [], 0
    for (tag, score), (word, start, end) in zip(scores.tolist(), tokens.tolist(), strict=False):
        if word < 0:
            continue
        while first < len(words) and words[first][1] <= start:
            first += 1
        last = first
        while last < len(words) and words[last][0] < end:
            last += 1
        if last > first:
            found.append(_Piece(first, last - 1, int(tag), float(score)))
    return found


def _marked_words(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Return the spans, as whole words of which at least one token is in the span.

    A word is in one span at most, the first. So a span that begins inside another span's word begins with the next
    word, if it reaches that far.
    """
    found: list[_Piece] = []
    before, begun = 0, False
    for piece in pieces:
        goes_on = piece.tag > 0 and piece.tag % 2 == 0 and before in (piece.tag, piece.tag - 1)
        begun = begun and goes_on
        taken = found[-1].last if found else -1
        if begun:
            found[-1].last = max(piece.last, taken)
            found[-1].score = min(piece.score, found[-1].score)
        elif piece.tag > 0 and piece.last > taken:
            found.append(_Piece(max(piece.first, taken + 1), piece.last, piece.tag, piece.score))
            begun = True
        before = max(piece.tag, 0)
    return found


def _span(marked: _Piece, types: Sequence[str], words: Sequence[tuple[int, int]], text: str) -> Span:
    start, end = words[marked.first][0], words[marked.last][1]
    return Span(types[(marked.tag - 1) // 2], text[start:end], start, end, marked.score)


def _tagged_words(
    words: Sequence[tuple[int, int]],
    pieces: Sequence[_Piece],
    spans: Sequence[_Piece],
    task: TaskInfo,
    row: TokenizedText,
) -> tuple[Word, ...]:
    only, first, inner, last = _LETTERS[task.scheme]  # type: ignore[attr-defined]  # `missing` has looked
    text, types = row.text, task.labels or ()
    scores: dict[int, float] = {}
    for piece in pieces:
        for word in range(piece.first, piece.last + 1):
            scores.setdefault(word, piece.score)
    tags: dict[int, str] = dict.fromkeys(scores, "O")
    for span in spans:
        for word in range(span.first, span.last + 1):
            begins, ends = word == span.first, word == span.last
            letter = only if begins and ends else first if begins else last if ends else inner
            tags[word] = f"{letter}-{types[(span.tag - 1) // 2]}"
    found = [
        Word(text[start:end], start, end, tags.get(word), scores.get(word, 0.0))
        for word, (start, end) in enumerate(words)
    ]
    if not row.truncated:
        return tuple(found)
    # The rest of the text, which the tokenizer did not reach, is split at blanks. If the last word that was read ends
    # without a blank, such as at a hyphen, the first of these words is shorter than that. The rest of a word that was
    # cut is in that word already.
    cut = islice(_UNREAD.finditer(text, found[-1].end if found else 0), MOST_UNREAD_WORDS)
    return (*found, *(Word(match[0], match.start(), match.end(), None, 0.0) for match in cut))
