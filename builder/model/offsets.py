"""Where a text's tokens stand in it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from builder.model.kinds.base import Offsets

_TEXTS_AT_A_TIME = 2048


def token_offsets(tokenizer: Tokenizer, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int) -> Offsets:
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
