"""Right-padded batches of real text, in every bucket, for the parity check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onetrunk.export.parity_texts import parity_texts
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS

_BATCH = 4


@dataclass(frozen=True)
class Batch:
    """Token ids of a few texts.

    Attributes:
        input_ids: *Shape:* (batch_size, bucket)
        attention_mask: *Shape:* (batch_size, bucket)
        token_type_ids: *Shape:* (batch_size, bucket)
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor

    @property
    def title(self) -> str:
        """Its shape, for messages."""
        return "batch {} x {} tokens".format(*self.input_ids.shape)

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """The same as arrays, by the names that models use."""
        return {
            INPUT_IDS: self.input_ids.numpy(),
            ATTENTION_MASK: self.attention_mask.numpy(),
            TOKEN_TYPE_IDS: self.token_type_ids.numpy(),
        }


def parity_batches(trunk: Trunk, buckets: tuple[int, ...]) -> Iterator[Batch]:
    """For every bucket, one batch of one text and one of several, of texts that fill the bucket more or less."""
    tokenizer = trunk.tokenizer()
    texts = parity_texts()
    for bucket in buckets:
        tokenizer.enable_truncation(bucket)
        tokenizer.enable_padding(length=bucket, pad_id=trunk.pad_token_id)
        # Longer buckets take several texts in a row, so that their far ends are looked at too.
        grown = [_grow(texts, i, words=bucket // 2) for i in range(len(texts))]
        rows = sorted(tokenizer.encode_batch(grown), key=lambda row: sum(row.attention_mask))
        spread = [rows[i * (len(rows) - 1) // (_BATCH - 1)] for i in range(_BATCH)]
        for chosen in ([rows[-1]], spread):
            yield Batch(
                torch.tensor([row.ids for row in chosen]),
                torch.tensor([row.attention_mask for row in chosen]),
                torch.tensor([row.type_ids for row in chosen]),
            )


def _grow(texts: list[tuple[str, str]], start: int, words: int) -> str | tuple[str, str]:
    first, second = texts[start]
    step = start
    # Every third text stays short: padding is what masks are for.
    while start % 3 and len(first.split()) < words:
        step += 1
        first = f"{first} {texts[step % len(texts)][0]}"
    return (first, second) if second else first
