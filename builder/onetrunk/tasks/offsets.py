"""Where a text's tokens stand in it, and what labels come to on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from tokenizers import Tokenizer

from onetrunk.tasks.kinds.base import Kind, KindConfig, Offsets

Texts = Sequence[str] | Sequence[tuple[str, str]]
_TEXTS_AT_A_TIME = 2048


def targets_of(
    kind: Kind,
    encoded: Sequence[Any],
    config: KindConfig,
    texts: Texts,
    tokenizer: Callable[[], Tokenizer],
    max_length: int,
) -> NDArray[Any]:
    """What the kind's ``targets`` gives. *Shape:* (texts, ...).

    Args:
        kind: the kind.
        encoded: the texts' labels, as ``Kind.encode`` gives them.
        config: the task's configuration.
        texts: the texts, which are read only for a kind whose answers are about tokens.
        tokenizer: makes the tokenizer that reads them.
        max_length: longest text in tokens.
    """
    offsets = token_offsets(tokenizer(), texts, max_length) if kind.by_token else None
    return kind.codec.targets(encoded, config, offsets)


def token_offsets(tokenizer: Tokenizer, texts: Texts, max_length: int) -> Offsets:
    """The first character of each token and the one after its last, as the trunk reads the texts.

    Args:
        tokenizer: a tokenizer of one's own: its truncation is set.
        texts: the texts.
        max_length: where they are cut, in tokens.
    """
    tokenizer.enable_truncation(max_length)
    found = []
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        found += [row.offsets for row in tokenizer.encode_batch(list(texts[start : start + _TEXTS_AT_A_TIME]))]
    return found
