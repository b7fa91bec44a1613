"""The trunk's states at one tap, read from the cache batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onetrunk.training.tokens import TokenRows, ragged_index


class States(Protocol):
    """Where training gets a batch of states from. *Lengths:* (texts,), tokens a text."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens a text. *Shape:* (texts,)."""

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """What a model is called with for some texts.

        For a head: their states and mask. *Shapes:* (rows, tokens, width), (rows, tokens).
        """


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


class TokenStates:
    """Texts as token ids, for a whole encoder.

    Attributes:
        lengths: tokens a text, in the order of the data. *Shape:* (texts,)
    """

    def __init__(self, rows: TokenRows, pad_token_id: int) -> None:
        self.lengths = rows.lengths
        self._rows, self._pad_token_id = rows, pad_token_id

    @property
    def vocabulary(self) -> Tensor:
        """The token ids that occur. *Shape:* (token ids,)."""
        return torch.from_numpy(np.unique(self._rows.ids).astype(np.int64))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Token ids, types and mask. *Shape of each:* (rows, tokens)."""
        return self._rows.batch(rows, self._pad_token_id)


class JoinedStates:
    """Several lists of states as one: a task's own texts, and texts of other tasks.

    Attributes:
        lengths: tokens a text; all of the first list's texts, then the second's. *Shape:* (texts,)
    """

    def __init__(self, parts: Sequence[tuple[CachedStates, NDArray[np.int64]]]) -> None:
        """Joins some rows of each list. *Shape of the rows:* (chosen,)."""
        self._parts = [states for states, _ in parts]
        self._part = np.concatenate([np.full(len(rows), place) for place, (_, rows) in enumerate(parts)])
        self._row = np.concatenate([rows for _, rows in parts])
        self.lengths = np.concatenate([states.lengths[rows] for states, rows in parts])

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """See States."""
        longest = int(self.lengths[rows].max())
        state: Tensor | None = None
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, part in enumerate(self._parts):
            here = np.flatnonzero(self._part[rows] == place)
            if not len(here):
                continue
            some, mask = part.batch(self._row[rows[here]])
            if state is None:
                state = some.new_zeros(len(rows), longest, some.shape[-1])
            where = torch.from_numpy(here)
            state[where, : some.shape[1]] = some
            attention_mask[where, : some.shape[1]] = mask
        assert state is not None, "a batch has rows"
        return state, attention_mask
