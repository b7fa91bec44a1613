"""Metrics of tagging: what is compared are spans of words, whatever pieces the words are read in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import UndefinedError
from onetrunk.tasks.kinds.span_tags import spans_of

Numbers = NDArray[Any]


def span_f1(predictions: Numbers, targets: Numbers) -> float:
    """F1 over spans of all texts together; a span counts where its first word, its last one and its type are right.

    That is what the package seqeval calls f1_score.

    Args:
        predictions: numbers of tags. *Shape:* (rows, tokens), more or fewer than those of the targets
        targets: tag and word of each token; see Tagging.targets. *Shape:* (rows, tokens, 2)

    Raises:
        UndefinedError: the data have no span.
    """
    right = found = wanted = 0
    for answered, expected in word_spans(predictions, targets):
        right += len(answered & expected)
        found += len(answered)
        wanted += len(expected)
    if not wanted:
        raise UndefinedError("no row has a span")
    return 2 * right / (found + wanted)


def token_accuracy(predictions: Numbers, targets: Numbers) -> float:
    """The share of words whose first piece has the right tag.

    Args:
        predictions: numbers of tags. *Shape:* (rows, tokens), more or fewer than those of the targets
        targets: tag and word of each token; see Tagging.targets. *Shape:* (rows, tokens, 2)

    Raises:
        UndefinedError: the data have no word.
    """
    width = min(predictions.shape[1], targets.shape[1])
    answered, (tags, words) = predictions[:, :width], np.moveaxis(targets[:, :width], 2, 0)
    first = (words >= 0) & (np.diff(words, axis=1, prepend=-1) != 0)
    # Tokens beyond the longest prediction were read by nobody.
    all_first = (targets[..., 1] >= 0) & (np.diff(targets[..., 1], axis=1, prepend=-1) != 0)
    if not all_first.any():
        raise UndefinedError("no row has a word")
    return float((answered == tags)[first].sum() / all_first.sum())


def word_spans(predictions: Numbers, targets: Numbers) -> Iterator[tuple[set[Any], set[Any]]]:
    """For each row, the spans that were answered and those of the data, as (first word, last word, number of a type).

    Args:
        predictions: numbers of tags. *Shape:* (rows, tokens), more or fewer than those of the targets
        targets: tag and word of each token; see Tagging.targets. *Shape:* (rows, tokens, 2)
    """
    for row, (tags, words) in zip(predictions, np.moveaxis(targets, 2, 1), strict=True):
        yield _in_words(row[: len(words)], words), _in_words(tags, words)


def _in_words(tags: Numbers, words: Numbers) -> set[tuple[int, int, str]]:
    """Spans of the data's words; a word is in one span at most, the first that one of its pieces is in.

    So a span that begins inside another one's word begins with the word after it, if it goes on that far.
    Clients do the same with the tokenizer's words, which are shorter: it ends a word at a hyphen or an apostrophe too.
    """
    # What is tagged at a special token or at padding is no part of a text.
    tags = np.where(words[: len(tags)] >= 0, tags, 0)
    types = [str(one) for one in range(int(tags.max(initial=0)) // 2 + 1)]
    found: list[tuple[int, int, str]] = []
    for first, last, kind in spans_of(tags.tolist(), types):
        taken = found[-1][1] if found else -1
        inside = [int(word) for word in words[first : last + 1] if word > taken]
        if inside:
            found.append((inside[0], inside[-1], kind))
    return set(found)
