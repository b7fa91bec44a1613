"""Batches of real texts, tokenized and right-padded to a bucket as the served tokenizer does it."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from onetrunk.protocol.names import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS

# For types only: a rollback proves its ensemble with these texts, and loads no torch.
if TYPE_CHECKING:
    from onetrunk.nn.trunk import Trunk

_BATCH_SIZE = 16
_PARITY_BATCH_SIZE = 4
# Fewer texts where they are long, padding included: attention on a full batch of them would not fit the memory.
_BATCH_TOKENS = 2**13

Arrays = dict[str, NDArray[Any]]
"""Name of a tensor -> its values."""


def padded_batches(
    trunk: Trunk, texts: Sequence[str | tuple[str, str]], buckets: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
    """Batch texts by length, truncate them at the last bucket, and pad each batch to the smallest bucket that holds it.

    Yields:
        The rows of a batch in ``texts``, *Shape:* (batch_size,), and the trunk's inputs for them, each of *Shape:*
        (batch_size, bucket).
    """
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(buckets[-1])
    encoded: list[Encoding] = tokenizer.encode_batch(list(texts))
    order = np.argsort([len(row.ids) for row in encoded], kind="stable")
    while len(order):
        rows = order[:_BATCH_SIZE]
        rows = rows[: _rows_within(_BATCH_TOKENS, _bucket_of(encoded[rows[-1]], buckets))]
        order = order[len(rows) :]
        bucket = _bucket_of(encoded[rows[-1]], buckets)
        yield rows, _pad([encoded[row] for row in rows], bucket, trunk.pad_token_id)


def parity_batches(trunk: Trunk, buckets: tuple[int, ...]) -> Iterator[Arrays]:
    """Yield a batch of one text and a batch of several for every bucket, from `parity_texts`.

    The texts fill the bucket to different degrees, so that padding is checked too.

    Yields:
        The trunk's inputs, each of *Shape:* (batch_size, bucket).
    """
    tokenizer = trunk.tokenizer()
    texts = parity_texts()
    for bucket in buckets:
        tokenizer.enable_truncation(bucket)
        # Several texts are joined for the longer buckets, so that their last positions are checked too.
        joined = [_join(texts, first, words=bucket // 2) for first in range(len(texts))]
        rows = sorted(tokenizer.encode_batch(joined), key=lambda row: len(row.ids))
        count = min(_PARITY_BATCH_SIZE, _rows_within(_BATCH_TOKENS, bucket))
        spread = [rows[i * (len(rows) - 1) // max(count - 1, 1)] for i in range(count)]
        for chosen in ([rows[-1]], spread):
            yield _pad(chosen, bucket, trunk.pad_token_id)


def parity_texts() -> list[tuple[str, str]]:
    """Return the texts of the parity check, each with its second text or an empty one."""
    content = (importlib.resources.files("onetrunk.export") / "parity_texts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    return [(row["text"], row.get("text_pair", "")) for row in rows]


def _bucket_of(longest: Encoding, buckets: tuple[int, ...]) -> int:
    return next(bucket for bucket in buckets if bucket >= len(longest.ids))


def _rows_within(tokens: int, bucket: int) -> int:
    """Return how many texts of this length have so many tokens together; at least one."""
    return max(1, tokens // bucket)


def _join(texts: list[tuple[str, str]], start: int, words: int) -> str | tuple[str, str]:
    first, second = texts[start]
    step = start
    # Every third text stays short, so that attention masks matter.
    while start % 3 and len(first.split()) < words:
        step += 1
        first = f"{first} {texts[step % len(texts)][0]}"
    return (first, second) if second else first


def _pad(rows: Sequence[Encoding], bucket: int, pad_token_id: int) -> Arrays:
    """Right-pad tokenized texts. *Shape of each array:* (rows, bucket)."""
    shape = (len(rows), bucket)
    arrays: Arrays = {
        INPUT_IDS: np.full(shape, pad_token_id, dtype=np.int64),
        ATTENTION_MASK: np.zeros(shape, dtype=np.int64),
        TOKEN_TYPE_IDS: np.zeros(shape, dtype=np.int64),
    }
    for place, row in enumerate(rows):
        length = len(row.ids)
        arrays[INPUT_IDS][place, :length] = row.ids
        arrays[ATTENTION_MASK][place, :length] = 1
        arrays[TOKEN_TYPE_IDS][place, :length] = row.type_ids
    return arrays
