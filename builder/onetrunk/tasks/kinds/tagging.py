"""Tagging: spans of words, each with a type, such as slots or named entities.

A task's labels are types of spans. A head tags every token in BIO; `onetrunk.protocol.words` places tokens on words.
Each piece of a word is a token with a tag: the first piece of a span has B-, all others have I-. So a head need not
know about words, and a span of pieces is the span of the words that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import counted
from onetrunk.protocol.reference import Reference
from onetrunk.protocol.words import words_of
from onetrunk.tasks.kinds.base import (
    AnswerSpec,
    Kind,
    KindConfig,
    LabelCodec,
    Offsets,
    Options,
    OutputSpec,
    Scores,
    TrainingSpec,
    labels_of,
    listed,
    stack_scores,
)
from onetrunk.tasks.kinds.span_tags import (
    OUTSIDE,
    Scheme,
    WordSpans,
    bio_tags,
    forbidden_transitions,
    read_spans,
    spans_of,
    tag_indices,
)
from onetrunk.tasks.kinds.summary import mean_share, rounded

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

_PADDING = -1
# Added to the score of a transition that is not allowed. Decoding uses a value that no score makes up for. The loss
# uses one that is far below any score and small enough to be subtracted from a sum without losing precision.
_NEVER, _UNLIKELY = -1e30, -1e4

MAX_CRF_TYPES = 1_000
"""A CRF has a score for each tag after each tag, and decoding a token compares all of them."""

Word = tuple[int, int, int]
"""A word of the data: its start and end in the text, in characters, and the index of its tag."""


class TaggingOptions(Options):
    """Options of a tagging task.

    Attributes:
        scheme: How the tags of the data are written. Heads answer in spans either way.
        output: ``softmax`` takes each token's likeliest tag; ``crf`` the likeliest sequence of tags that is valid.
    """

    scheme: Scheme = "BIO"
    output: Literal["softmax", "crf"] = "crf"


class TaggingCodec(LabelCodec):
    """Words with their tags are encoded by their places in the text."""

    uses_labels: ClassVar[bool] = True
    min_labels: ClassVar[int] = 1

    def check(self, config: KindConfig) -> None:
        """Check that labels are types of spans: they must not look like tags, nor contain spaces, which separate tags.

        Raises:
            ValueError: One of them does, or the labels are not allowed for any kind.
        """
        super().check(config)
        for label in labels_of(config):
            if label == OUTSIDE or label[:2] in ("B-", "I-", "L-", "U-"):
                raise ValueError(f"labels of a tagging task are types of spans, such as artist; {label!r:.60} is a tag")
            if label.split() != [label]:
                raise ValueError(f"labels of a tagging task must not contain spaces; found {label!r:.60}")

    def read_text(self, value: object) -> str:
        """Return the words as one text, also of a table's cell that holds a list of them."""
        words = listed(value) if isinstance(value, str) else None
        return super().read_text(words if words and all(isinstance(word, str) for word in words) else value)

    def encode(self, label: object, config: KindConfig, text: str = "") -> tuple[Word, ...]:
        """Return the words of the text with their tags.

        Args:
            label: A list of tags, a text with spaces between them, or spans of words.
            config: The task's configuration.
            text: The text.

        Raises:
            ValueError: The label is neither, a tag is unknown or misplaced, or there is not one tag for each word.
        """
        if isinstance(label, WordSpans):
            return _words_of(label, labels_of(config))
        types, words = labels_of(config), text.split()
        tags = label.split() if isinstance(label, str) else label
        if not isinstance(tags, list):
            raise ValueError(f"tags {label!r:.40} are not a list of tags, nor a text of tags")
        for place, tag in enumerate(tags, start=1):
            if not isinstance(tag, str):
                raise ValueError(f"tag {place}: {tag!r:.40} is not a tag, as O and B-{types[0]:.40} are")
        if len(tags) != len(words):
            raise ValueError(f"{counted(len(tags), 'tag', 'tags')} for {counted(len(words), 'word', 'words')}")
        spans = read_spans(tags, types, TaggingOptions.read(config.options).scheme)
        found, end = [], 0
        for word, index in zip(words, tag_indices(len(words), spans, types).tolist(), strict=True):
            start = text.index(word, end)
            end = start + len(word)
            found.append((start, end, index))
        return tuple(found)

    def targets(
        self, encoded: Sequence[tuple[Word, ...]], config: KindConfig, offsets: Offsets | None = None
    ) -> NDArray[np.int64]:
        """Return each token's tag and the index of its word; both are -1 at padding, the word also at special tokens.

        Words beyond the last token are neither learned nor measured.

        Args:
            encoded: The rows' words.
            config: The task's configuration.
            offsets: The rows' tokens.

        Returns:
            *Shape:* (rows, tokens, 2)
        """
        assert offsets is not None, "a kind by token is given its tokens"
        longest = max((len(row) for row in offsets), default=0)
        found = np.full((len(encoded), longest, 2), _PADDING, dtype=np.int64)
        for row, (words, tokens) in enumerate(zip(encoded, offsets, strict=True)):
            found[row, : len(tokens)] = _token_targets(words, tokens)
        return found

    def part(self, encoded: tuple[Word, ...], start: int, end: int) -> tuple[Word, ...]:
        """See ``LabelCodec.part``: the words in the part, by their places in it. Its border may cut a word."""
        return tuple(
            (max(first, start) - start, min(behind, end) - start, tag)
            for first, behind, tag in encoded
            if first < end and behind > start
        )

    def encoded_of(
        self,
        raw: NDArray[np.float32],
        config: KindConfig,
        text: str = "",
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Word, ...]:
        """See ``LabelCodec.encoded_of``: the words that have a token, with the likeliest tags of their first ones.

        An I- without its B- begins a span.
        """
        assert offsets is not None, "a kind by token is given its tokens"
        words, tags, token = [], [], 0
        for start, end in words_of(text):
            while token < len(offsets) and (offsets[token][0] == offsets[token][1] or offsets[token][1] <= start):
                token += 1
            if token < len(offsets) and offsets[token][0] < end:
                words.append((start, end))
                tags.append(int(raw[token].argmax()))
        types = labels_of(config)
        found = tag_indices(len(words), spans_of(tags, types), types).tolist()
        return tuple((start, end, tag) for (start, end), tag in zip(words, found, strict=True))

    def unused_labels(self, encoded: Sequence[tuple[Word, ...]], config: KindConfig) -> list[str]:
        """Return the types of which no row has a span."""
        present = {(index - 1) // 2 for words in encoded for _, _, index in words if index}
        return [kind for index, kind in enumerate(labels_of(config)) if index not in present]


class TaggingTraining(TrainingSpec):
    """Cross entropy of the tokens, or the negative log-likelihood of a CRF."""

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean over tokens of the cross entropy, or of the CRF's negative log-likelihood."""
        from torch.nn import functional

        from onetrunk.tasks.kinds.crf import negative_log_likelihood

        tags = targets[:, : raw.shape[1], 0]
        transitions = getattr(output, "transitions", None)
        if transitions is None:
            return functional.cross_entropy(raw.transpose(1, 2), tags, ignore_index=_PADDING)
        transitions = transitions + _transition_bias(raw, _UNLIKELY)
        return negative_log_likelihood(raw, transitions, tags) / (tags != _PADDING).sum()

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return T^2 times the mean cross entropy of the tokens with the teacher's softened probabilities."""
        import torch
        from torch.nn import functional

        teacher = teacher[:, : raw.shape[1]]
        real = _is_token(teacher)
        softened = torch.softmax(teacher[real] / temperature, dim=-1)
        return temperature**2 * functional.cross_entropy(raw[real] / temperature, softened)

    def divergence(self, raw: Tensor, teacher: Tensor, config: KindConfig) -> Tensor:
        """Return the divergence of the tokens' tags without regard to their order, as the mean over a text's tokens."""
        import torch

        tokens = min(raw.shape[1], teacher.shape[1])
        raw, teacher = raw[:, :tokens], teacher[:, :tokens]
        real = _is_token(teacher)
        ours, theirs = torch.log_softmax(raw, dim=-1), torch.log_softmax(teacher, dim=-1)
        by_token = (theirs.exp() * (theirs - ours)).sum(dim=-1) * real
        return by_token.sum(dim=-1) / real.sum(dim=-1).clamp(min=1)


class TaggingOutput(OutputSpec):
    """The index and the probability of every token's tag. Raw outputs at padding are zero for every tag."""

    def check(self, config: KindConfig) -> None:
        """Check that a CRF has no more types than a token's tag can be decoded from.

        Raises:
            ValueError: It has more.
        """
        super().check(config)
        types = len(labels_of(config))
        if types > MAX_CRF_TYPES and TaggingOptions.read(config.options).output == "crf":
            raise ValueError(f"a crf has at most {MAX_CRF_TYPES} labels; found {types:,}: leave the option output out")

    def num_outputs(self, config: KindConfig) -> int:
        """Return the number of tags: O, and B- and I- of each type."""
        return len(bio_tags(labels_of(config)))

    def dims(self, config: KindConfig) -> list[int]:
        """Return the dims of (tokens, tag and probability)."""
        return [-1, 2]

    def build_layer(self, width: int, config: KindConfig) -> nn.Linear:
        """Build a linear layer for every token, with transition scores if the option ``output`` is ``crf``."""
        from onetrunk.tasks.kinds.crf import TokenOutput

        crf = TaggingOptions.read(config.options).output == "crf"
        return TokenOutput(width, self.num_outputs(config), transitions=crf)

    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return the index and the probability of each token's tag; -1 and 0 at padding.

        With ``crf`` the tags are those of the likeliest sequence, and a tag's probability is over all sequences.

        *Shape:* (batch_size, tokens, tags) to (batch_size, tokens, 2)
        """
        import torch

        from onetrunk.tasks.kinds.crf import decode

        real, transitions = _is_token(raw), getattr(output, "transitions", None)
        if transitions is None:
            tags, probabilities = raw.argmax(dim=-1), torch.softmax(raw, dim=-1)
        else:
            tags, probabilities = decode(raw, transitions + _transition_bias(raw, _NEVER), real)
        chosen = probabilities.gather(2, tags[..., None])[..., 0]
        padding = torch.full_like(chosen, _PADDING)
        return torch.stack([torch.where(real, tags.to(raw.dtype), padding), chosen * real.to(raw.dtype)], dim=-1)

    def has_loops(self, config: KindConfig) -> bool:
        """Return whether tags are decoded together, token by token."""
        return TaggingOptions.read(config.options).output == "crf"

    def client_info(self, config: KindConfig) -> dict[str, Any]:
        """Return how tags are written."""
        return {"scheme": TaggingOptions.read(config.options).scheme}

    def describe(self, config: KindConfig) -> str:
        """List the types."""
        return "spans of " + ", ".join(f"`{kind}`" for kind in labels_of(config))


class TaggingAnswers(AnswerSpec):
    """The answer is a text's spans. Of two arrays of scores, one may have more padding than the other."""

    def predictions(self, scores: Scores, config: KindConfig) -> NDArray[np.int64]:
        """Return tag indices. *Shape:* (rows, tokens, 2) to (rows, tokens)."""
        return np.asarray(scores[..., 0], dtype=np.int64)

    def labels_held(self, scores: Scores, config: KindConfig) -> NDArray[np.bool_]:
        """Return the types that each text has spans of. *Shape:* (rows, tokens, 2) to (rows, types)."""
        tags = self.predictions(scores, config)
        # Two tags a type, behind that of no span.
        return np.stack([((tags + 1) // 2 == place + 1).any(axis=1) for place in range(len(labels_of(config)))], axis=1)

    def gold(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return the tags of the data. *Shape:* (rows, tokens, 2) to (rows, tokens)."""
        return np.asarray(targets[..., 0])

    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return the types of the spans."""
        spans = spans_of(self.predictions(scores, config).tolist(), labels_of(config))
        return ", ".join(kind for _, _, kind in spans) or "(no spans)"

    def reference(self, scores: Scores, config: KindConfig) -> Reference:
        """Return in how many texts each type has a span, and how many spans a text has."""
        tags, types = self.predictions(scores, config), len(labels_of(config))
        before = np.pad(tags, ((0, 0), (1, 0)))[:, :-1]
        # An I-, whose index is even, goes on with the span of the same type before it.
        begun = (tags > 0) & ~((tags % 2 == 0) & ((before == tags) | (before == tags - 1)))
        present = np.zeros((len(scores), types), dtype=np.bool_)
        rows, places = np.nonzero(begun)
        present[rows, (tags[rows, places] - 1) // 2] = True
        return Reference(
            rows=len(scores),
            labels=rounded(present.mean(axis=0)),
            none_of_these=mean_share(~begun.any(axis=-1)),
            spans=round(float(begun.sum() / len(scores)), 3),
        )

    def fault(self, scores: Scores, config: KindConfig) -> str | None:
        """Return whether scores are not finite, or not tag indices with probabilities."""
        fault = super().fault(scores, config)
        if fault is not None:
            return fault
        tags, probabilities = scores[..., 0], scores[..., 1]
        last = len(bio_tags(labels_of(config))) - 1
        if (tags != np.rint(tags)).any() or tags.min() < _PADDING or tags.max() > last:
            return f"its tags are not numbers from 0 to {last}, and {_PADDING} at padding"
        outside = probabilities.min() < 0 or probabilities.max() > 1
        return "its scores are not probabilities from 0 to 1" if outside else None

    def difference(self, found: Scores, expected: Scores, config: KindConfig) -> float:
        """Return the greatest difference of a probability, or the share of tokens with another tag if that is more."""
        if len(found) != len(expected):
            return float("inf")
        both = stack_scores([*found, *expected])
        one, other = both[: len(found)], both[len(found) :]
        real = (one[..., 0] >= 0) | (other[..., 0] >= 0)
        other_tag = float((one[..., 0] != other[..., 0])[real].mean()) if real.any() else 0.0
        # Unlike max(), this keeps NaN.
        return float(np.maximum(other_tag, np.abs(one[..., 1] - other[..., 1])[real].max(initial=0)))

    def distance(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> NDArray[np.float32]:
        """See `AnswerSpec.distance`: the share of each text's tokens that are tagged differently."""
        tokens = np.maximum((first[..., 0] >= 0).sum(axis=-1), 1)
        found: NDArray[np.float32] = ((first[..., 0] != second[..., 0]).sum(axis=-1) / tokens).astype(np.float32)
        return found

    def mean_difference(self, first: Scores, second: Scores, config: KindConfig) -> float:
        """Return the mean difference of the tokens' probabilities."""
        real = first[..., 0] >= 0
        return float(np.abs(first[..., 1] - second[..., 1])[real].mean()) if real.any() else 0.0


def _is_token(raw: Tensor) -> Tensor:
    """Return which places are tokens, not padding. *Shape:* (batch_size, tokens, tags) to (batch_size, tokens)."""
    return raw.abs().sum(dim=-1) > 0


def _transition_bias(raw: Tensor, score: float) -> Tensor:
    """Return ``score`` for each tag after each tag that it must not follow, else 0. *Shape:* (tags, tags)."""
    return raw.new_tensor(score * forbidden_transitions(raw.shape[-1] // 2))


def _words_of(label: WordSpans, types: Sequence[str]) -> tuple[Word, ...]:
    if unknown := [kind for _, _, kind in label.spans if kind not in types]:
        shown = ", ".join(types[:8]) + (", ..." if len(types) > 8 else "")
        raise ValueError(f"a span of {unknown[0]!r:.60}, which is not one of: {shown}")
    tags = tag_indices(len(label.words), label.spans, types).tolist()
    return tuple((start, end, tag) for (start, end), tag in zip(label.words, tags, strict=True))


def _token_targets(words: Sequence[Word], tokens: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return tag and word of each token of a text. *Shape:* (tokens, 2).

    The first piece of a span has B-, even if the tokenizer drops the span's first words. Blanks that are tokens are
    part of the span around them, since a span has no gaps.
    """
    found = np.zeros((len(tokens), 2), dtype=np.int64)
    found[:, 1] = _PADDING
    place, begun, before = 0, False, 0
    for token, (start, end) in enumerate(tokens):
        # Special tokens are not part of the text, and blanks are in no word.
        if start == end:
            continue
        while place < len(words) and words[place][1] <= start:
            place += 1
            # A word with B-, whose index is odd, begins a span.
            begun = begun and place < len(words) and words[place][2] % 2 == 0
        if place == len(words) or end <= words[place][0]:
            continue
        tag = words[place][2]
        if tag:
            begin = tag - (tag % 2 == 0)
            if begun:
                found[before + 1 : token, 0] = begin + 1
            tag = begin + begun
            begun, before = True, token
        found[token] = (tag, place)
    return found


TAGGING = Kind(
    name="tagging",
    codec=TaggingCodec(),
    training=TaggingTraining(),
    output=TaggingOutput(),
    answers=TaggingAnswers(),
    metrics=("span_f1", "token_accuracy"),
    options=TaggingOptions,
    forms=("single",),
    by_token=True,
)
