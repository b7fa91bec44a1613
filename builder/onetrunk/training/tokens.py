"""Texts as token ids, ragged: no padding is stored anywhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.offsets import Texts

_TEXTS_AT_A_TIME = 2048


@dataclass(frozen=True)
class TokenRows:
    """The token ids of many texts, one after the other.

    Attributes:
        ids: *Shape:* (all tokens,)
        type_ids: 0 for the first text of a pair, 1 for the second. *Shape:* (all tokens,)
        lengths: tokens a text. *Shape:* (texts,)
        cut: how many texts were longer than allowed.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    cut: int

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """Some texts, padded on the right to the longest of them.

        Returns:
            input_ids, token_type_ids and attention_mask. *Shape of each:* (batch_size, tokens)
        """
        starts = np.cumsum(self.lengths) - self.lengths
        index, mask = ragged_index(starts[rows], self.lengths[rows])
        input_ids = np.where(mask, self.ids[index], pad_token_id).astype(np.int64)
        type_ids = np.where(mask, self.type_ids[index], 0).astype(np.int64)
        return torch.from_numpy(input_ids), torch.from_numpy(type_ids), torch.from_numpy(mask.astype(np.int64))


def tokenise(trunk: Trunk, texts: Texts, max_length: int) -> TokenRows:
    """Texts as the trunk reads them: with its special tokens, cut at ``max_length``, the longer text of a pair first.

    Raises:
        UserError: the trunk cannot read that many tokens.
    """
    check_max_length(trunk, max_length)
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(max_length)
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.uint8]] = []
    cut = 0
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _TEXTS_AT_A_TIME])):
            ids.append(np.asarray(encoding.ids, dtype=np.int32))
            type_ids.append(np.asarray(encoding.type_ids, dtype=np.uint8))
            cut += bool(encoding.overflowing)
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    return TokenRows(np.concatenate(ids), np.concatenate(type_ids), lengths, cut)


def check_max_length(trunk: Trunk, max_length: int) -> None:
    """Raises UserError where the trunk cannot read that many tokens."""
    if not 3 <= max_length <= trunk.max_positions:
        raise UserError(f"max_length {max_length}: this trunk reads 3 to {trunk.max_positions} tokens")


def texts_sha256(texts: Texts) -> str:
    """A hash over texts, in their order. Labels do not count: the trunk does not see them."""
    digest = hashlib.sha256()
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        for part in parts:
            encoded = part.encode()
            # With the lengths in it, no two lists of texts can be the same string of bytes.
            digest.update(f"{len(parts)},{len(encoded)}:".encode())
            digest.update(encoded)
    return digest.hexdigest()


def ragged_index(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where the tokens of some rows lie in a ragged array, padded to a rectangle.

    Args:
        starts: place of each row's first token. *Shape:* (rows,)
        lengths: tokens of each row. *Shape:* (rows,)

    Returns:
        Places, and which of them are tokens; padding points at its row's first token. *Shape of both:* (rows, tokens)
    """
    column = np.arange(lengths.max())
    mask = column < lengths[:, None]
    return starts[:, None] + np.where(mask, column, 0), mask
