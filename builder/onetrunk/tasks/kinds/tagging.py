"""Spans of words, each with a type: slots, names, and whatever else stands somewhere in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.kinds.base import AnswerSpace, Kind, Offsets, Scores, labels_of, stack_rows
from onetrunk.tasks.kinds.options import Options
from onetrunk.tasks.kinds.span_tags import OUTSIDE, Scheme, bio_tags, forbidden_moves, read_spans, spans_of, tag_numbers

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn

_PADDING = -1
# What a move that cannot be adds to the score of a sequence. When tags are looked for, no score makes up for it. In the
# loss it is far below any score too, and still a number that a sum can be taken back from.
_NEVER, _UNLIKELY = -1e30, -1e4

# A word of a row of data: its first character in the text, the one after its last, and the number of its tag.
Word = tuple[int, int, int]


class TaggingOptions(Options):
    """Options of a tagging task.

    Attributes:
        scheme: how the tags of the data are written. Heads answer in spans either way.
        output: ``softmax`` takes each token's likeliest tag by itself; ``crf`` the likeliest sequence that can be.
    """

    scheme: Scheme = "BIO"
    output: Literal["softmax", "crf"] = "crf"


class Tagging(Kind):
    """Types of spans are the labels. A head gives a tag a token, in BIO; words and characters come with the tokenizer.

    Each piece of a word is a token with a tag: the first piece of a span has B-, all others I-. So a head needs to know
    nothing of words. A span of pieces is one of the words that they are in.

    Raw outputs are nought at padding, for every tag: that is how it is known there.
    """

    name: ClassVar[str] = "tagging"
    uses_labels: ClassVar[bool] = True
    fewest_labels: ClassVar[int] = 1
    forms: ClassVar[tuple[str, ...]] = ("single",)
    by_token: ClassVar[bool] = True
    options: ClassVar[type[Options]] = TaggingOptions
    metrics: ClassVar[tuple[str, ...]] = ("span_f1", "token_accuracy")

    def check(self, space: AnswerSpace) -> None:
        """Labels as of any kind, which are types: none looks like a tag, nor has a blank, by which tags are parted."""
        super().check(space)
        for label in labels_of(space):
            if label == OUTSIDE or label[:2] in ("B-", "I-", "L-", "U-"):
                raise ValueError(f"labels of a tagging task are types of spans, as artist; {label!r:.60} is a tag")
            if label.split() != [label]:
                raise ValueError(f"labels of a tagging task must have no blanks; found {label!r:.60}")

    def outputs(self, space: AnswerSpace) -> int:
        """One a tag: O, and B- and I- of each type."""
        return len(bio_tags(labels_of(space)))

    def dims(self, space: AnswerSpace) -> list[int]:
        """Number of the tag and its probability, for each token."""
        return [-1, 2]

    def output(self, width: int, space: AnswerSpace) -> nn.Linear:
        """A linear output a token, and with ``crf`` the scores of tags after tags."""
        from onetrunk.tasks.kinds.token_output import TokenOutput

        crf = TaggingOptions.read(space.options).output == "crf"
        return TokenOutput(width, self.outputs(space), transitions=crf)

    def describe(self, space: AnswerSpace) -> str:
        """The types."""
        return "spans of " + ", ".join(f"`{kind}`" for kind in labels_of(space))

    def served(self, space: AnswerSpace) -> dict[str, Any]:
        """How tags are written."""
        return {"scheme": TaggingOptions.read(space.options).scheme}

    def encode(self, label: object, space: AnswerSpace, text: str = "") -> tuple[Word, ...]:
        """The words of the text with their tags: of a list of tags, or of a text with blanks between them."""
        types, words = labels_of(space), text.split()
        tags = label.split() if isinstance(label, str) else label
        if not isinstance(tags, list):
            raise ValueError(f"tags {label!r:.40} are no list of tags, nor a text of tags")
        for place, tag in enumerate(tags, start=1):
            if not isinstance(tag, str):
                raise ValueError(f"tag {place}: {tag!r:.40} is no text")
        if len(tags) != len(words):
            raise ValueError(f"{len(tags)} tags for {len(words)} words")
        spans = read_spans(tags, types, TaggingOptions.read(space.options).scheme)
        found, end = [], 0
        for word, number in zip(words, tag_numbers(len(words), spans, types).tolist(), strict=True):
            start = text.index(word, end)
            end = start + len(word)
            found.append((start, end, number))
        return tuple(found)

    def targets(
        self, encoded: Sequence[tuple[Word, ...]], space: AnswerSpace, offsets: Offsets | None = None
    ) -> NDArray[np.int64]:
        """For each token its tag and the number of its word; -1 for padding, and for the word of special tokens.

        Words that were cut off have no token, so nothing is learned of them, nor measured.

        *Shape:* (rows, tokens, 2)
        """
        assert offsets is not None, "a kind by token is given its tokens"
        longest = max((len(row) for row in offsets), default=0)
        found = np.full((len(encoded), longest, 2), _PADDING, dtype=np.int64)
        for row, (words, tokens) in enumerate(zip(encoded, offsets, strict=True)):
            found[row, : len(tokens)] = _token_targets(words, tokens)
        return found

    def absent(self, encoded: Sequence[tuple[Word, ...]], space: AnswerSpace) -> list[str]:
        """The types of which no row has a span."""
        present = {(number - 1) // 2 for words in encoded for _, _, number in words if number}
        return [kind for index, kind in enumerate(labels_of(space)) if index not in present]

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Cross entropy a token, or the CRF's negative log-likelihood a token."""
        from torch.nn import functional

        from onetrunk.tasks.kinds.crf import negative_log_likelihood

        tags = targets[:, : raw.shape[1], 0]
        transitions = getattr(output, "transitions", None)
        if transitions is None:
            return functional.cross_entropy(raw.transpose(1, 2), tags, ignore_index=_PADDING)
        moves = transitions + self._forbidden(raw, _UNLIKELY)
        return negative_log_likelihood(raw, moves, tags) / (tags != _PADDING).sum()

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 times the cross entropy with the teacher's softened probabilities, a token."""
        import torch
        from torch.nn import functional

        teacher = teacher[:, : raw.shape[1]]
        real = _real(teacher)
        wanted = torch.softmax(teacher[real] / temperature, dim=-1)
        return temperature**2 * functional.cross_entropy(raw[real] / temperature, wanted)

    def scores(self, raw: Tensor, space: AnswerSpace, output: nn.Module | None = None) -> Tensor:
        """Number and probability of each token's tag; -1 and 0 at padding. *Shape:* (batch_size, tokens, 2).

        With ``crf`` the tags are those of the likeliest sequence, and a tag's probability is over all sequences.
        """
        import torch

        from onetrunk.tasks.kinds.crf import decode

        real, transitions = _real(raw), getattr(output, "transitions", None)
        if transitions is None:
            tags, chances = raw.argmax(dim=-1), torch.softmax(raw, dim=-1)
        else:
            tags, chances = decode(raw, transitions + self._forbidden(raw, _NEVER), real)
        chosen = chances.gather(2, tags[..., None])[..., 0]
        padding = torch.full_like(chosen, _PADDING)
        return torch.stack([torch.where(real, tags.to(raw.dtype), padding), chosen * real.to(raw.dtype)], dim=-1)

    def predictions(self, scores: Scores, space: AnswerSpace) -> NDArray[np.int64]:
        """Numbers of tags. *Shape:* (rows, tokens)."""
        return np.asarray(scores[..., 0], dtype=np.int64)

    def fault(self, scores: Scores, space: AnswerSpace) -> str | None:
        """Not finite, no numbers of tags, or no probabilities."""
        fault = super().fault(scores, space)
        if fault is not None:
            return fault
        tags, chances = scores[..., 0], scores[..., 1]
        most = self.outputs(space) - 1
        if (tags != np.rint(tags)).any() or tags.min() < _PADDING or tags.max() > most:
            return f"its tags are not numbers from 0 to {most}, and {_PADDING} at padding"
        return "its scores are not probabilities from 0 to 1" if chances.min() < 0 or chances.max() > 1 else None

    def right(self, targets: NDArray[Any]) -> NDArray[Any]:
        """The tags of the data. *Shape:* (rows, tokens, 2) to (rows, tokens)."""
        return np.asarray(targets[..., 0])

    def distance(self, first: Scores, second: Scores, space: AnswerSpace) -> NDArray[np.float32]:
        """The share of a text's tokens that are tagged differently."""
        real = np.maximum((first[..., 0] >= 0).sum(axis=-1), 1)
        found: NDArray[np.float32] = ((first[..., 0] != second[..., 0]).sum(axis=-1) / real).astype(np.float32)
        return found

    def mean_difference(self, first: Scores, second: Scores, space: AnswerSpace) -> float:
        """Of the probabilities of tokens."""
        real = first[..., 0] >= 0
        return float(np.abs(first[..., 1] - second[..., 1])[real].mean()) if real.any() else 0.0

    def difference(self, found: Scores, expected: Scores, space: AnswerSpace) -> float:
        """The greatest difference of a probability, or the share of tokens with another tag if that is more.

        One of them may have more padding.
        """
        if len(found) != len(expected):
            return float("inf")
        both = stack_rows([*found, *expected])
        one, other = both[: len(found)], both[len(found) :]
        real = (one[..., 0] >= 0) | (other[..., 0] >= 0)
        other_tag = float((one[..., 0] != other[..., 0])[real].mean()) if real.any() else 0.0
        # Unlike max(), this keeps NaN.
        return float(np.maximum(other_tag, np.abs(one[..., 1] - other[..., 1])[real].max(initial=0)))

    def shown(self, scores: Scores, space: AnswerSpace) -> str:
        """The types of the spans."""
        spans = spans_of(self.predictions(scores, space).tolist(), labels_of(space))
        return ", ".join(kind for _, _, kind in spans) or "(no spans)"

    @staticmethod
    def _forbidden(raw: Tensor, score: float) -> Tensor:
        """The score for each tag after each tag that it must not follow, else 0. *Shape:* (tags, tags)."""
        return raw.new_tensor(score * forbidden_moves(raw.shape[-1] // 2))


def _real(raw: Tensor) -> Tensor:
    return raw.abs().sum(dim=-1) > 0


def _token_targets(words: Sequence[Word], tokens: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Tag and word of each token of a text. *Shape:* (tokens, 2).

    The first piece of a span has B-, also where the tokenizer leaves nothing of the span's first words.
    """
    found = np.zeros((len(tokens), 2), dtype=np.int64)
    found[:, 1] = _PADDING
    place, begun = 0, False
    for token, (start, end) in enumerate(tokens):
        # A special token is no part of the text.
        if start == end:
            continue
        while place < len(words) and words[place][1] <= start:
            place += 1
            # A word with B-, which is odd, begins a span.
            begun = begun and place < len(words) and words[place][2] % 2 == 0
        if place == len(words) or end <= words[place][0]:
            continue
        number = words[place][2]
        if number:
            first = number - (number % 2 == 0)
            number = first + begun
            begun = True
        found[token] = (number, place)
    return found
