"""The trunk's states at one tap, read from the cache batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.training.tokens import ragged_index


class States(Protocol):
    """Where training gets a batch of states from. *Lengths:* (texts,), tokens a text."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens a text. *Shape:* (texts,)."""

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The states of some texts and their mask. *Shapes:* (rows, tokens, width), (rows, tokens)."""


class CachedStates:
    """States on disk, mapped into memory: only what a batch needs is read.

    Texts lie in the order of their length, so that the texts of a batch, which are of similar length, lie close.

    Attributes:
        lengths: tokens a text, in the order of the data. *Shape:* (texts,)
    """

    def __init__(self, path: Path, lengths: NDArray[np.int64], width: int) -> None:
        self.lengths = lengths
        self._starts = row_starts(lengths)
        # Mode c: torch refuses to share read-only memory without a warning. Nothing writes to it.
        self._states = torch.from_numpy(np.memmap(path, dtype=np.float16, mode="c", shape=(int(lengths.sum()), width)))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See States. Padding holds zeros."""
        index, mask = ragged_index(self._starts[rows], self.lengths[rows])
        attention_mask = torch.from_numpy(mask.astype(np.int64))
        state = self._states[torch.from_numpy(index)].float() * attention_mask[..., None]
        return state, attention_mask


def length_order(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The texts from short to long, as they lie in the cache. *Shape:* (texts,)."""
    return np.argsort(lengths, kind="stable")


def row_starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each text's first token in the cache, for the texts in the order of the data. *Shape:* (texts,)."""
    order = length_order(lengths)
    starts = np.empty_like(lengths)
    starts[order] = np.cumsum(lengths[order]) - lengths[order]
    return starts
