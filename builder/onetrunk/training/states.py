"""The inputs of training: texts as token ids or cached hidden states, stored without padding, read in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.examples import Texts

_TEXTS_AT_A_TIME = 2048


@dataclass(frozen=True)
class TokenRows:
    """The token ids of many texts, one after the other.

    Attributes:
        ids: The token ids. *Shape:* (all tokens,)
        type_ids: The token types: 0 for the first text of a pair, 1 for the second. *Shape:* (all tokens,)
        lengths: The number of tokens of each text. *Shape:* (texts,)
        cut: The number of texts that were longer than allowed.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    cut: int

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return some texts, padded on the right to the longest of them.

        Args:
            rows: The row numbers. *Shape:* (batch_size,)
            pad_token_id: The token id of the padding.

        Returns:
            input_ids, token_type_ids and attention_mask. *Shape of each:* (batch_size, tokens)
        """
        starts = np.cumsum(self.lengths) - self.lengths
        index, mask = ragged_index(starts[rows], self.lengths[rows])
        input_ids = np.where(mask, self.ids[index], pad_token_id).astype(np.int64)
        type_ids = np.where(mask, self.type_ids[index], 0).astype(np.int64)
        return torch.from_numpy(input_ids), torch.from_numpy(type_ids), torch.from_numpy(mask.astype(np.int64))


def tokenise(trunk: Trunk, texts: Texts, max_length: int) -> TokenRows:
    """Tokenise texts as the trunk reads them, with special tokens, cut at ``max_length``: first the longer of a pair.

    Args:
        trunk: The trunk, which brings the tokenizer.
        texts: The texts, or pairs of texts.
        max_length: The longest text in tokens.

    Raises:
        UserError: The trunk cannot read that many tokens, or they are too few for its special tokens.
    """
    tokenizer = text_tokenizer(trunk, max_length, pair=len(texts) > 0 and not isinstance(texts[0], str))
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


def text_tokenizer(trunk: Trunk, max_length: int, *, pair: bool) -> Tokenizer:
    """Return a fresh tokenizer that truncates.

    Args:
        trunk: The trunk, which brings the tokenizer.
        max_length: The longest text in tokens.
        pair: Whether it is for pairs of texts.

    Raises:
        UserError: The trunk cannot read that many tokens, they are too few for its special tokens, or nothing tells it
            where the second text of a pair begins.
    """
    tokenizer = trunk.tokenizer()
    # With fewer, the library would not cut at all.
    check_max_length(trunk, max_length, tokenizer.num_special_tokens_to_add(pair) + (2 if pair else 1))
    tokenizer.enable_truncation(max_length)
    if pair and not _separates(trunk, tokenizer):
        raise UserError(
            f"{trunk.folder}: this trunk cannot tell the texts of a pair apart: it reads no token types, and "
            "tokenizer.json puts no special token between them; give another trunk, or put both into one text"
        )
    return tokenizer


def _separates(trunk: Trunk, tokenizer: Tokenizer) -> bool:
    """Return whether the texts of a pair differ in their token types, or have a special token between them."""
    encoded = tokenizer.encode("a", "b")
    sequences = encoded.sequence_ids
    if not {0, 1} <= set(sequences):  # none of the letters is a token
        return True
    first = sequences.index(1)
    return sequences[first - 1] is None or (trunk.reads_types and len(set(encoded.type_ids)) > 1)


def check_max_length(trunk: Trunk, max_length: int, least: int = 3) -> None:
    """Check a text length against the trunk.

    Args:
        trunk: The trunk.
        max_length: The longest text in tokens.
        least: The tokens of the shortest text, special tokens included.

    Raises:
        UserError: The trunk cannot read that many tokens, or they are too few.
    """
    if not least <= max_length <= trunk.max_positions:
        raise UserError(f"max_length {max_length}: this trunk reads {least} to {trunk.max_positions} tokens")


def texts_sha256(texts: Texts) -> str:
    """Return a hash over texts, in their order. Labels are not part of it: the trunk does not see them."""
    digest = hashlib.sha256()
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        for part in parts:
            encoded = part.encode()
            # With the lengths, no two lists of texts give the same bytes.
            digest.update(f"{len(parts)},{len(encoded)}:".encode())
            digest.update(encoded)
    return digest.hexdigest()


def ragged_index(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the indices of some rows' tokens in a ragged array, padded to a rectangle.

    Args:
        starts: The index of each row's first token. *Shape:* (rows,)
        lengths: The number of tokens of each row. *Shape:* (rows,)

    Returns:
        The indices, and a mask of those that are tokens; padding points at its row's first token.
        *Shape of both:* (rows, tokens)
    """
    column = np.arange(lengths.max())
    mask = column < lengths[:, None]
    return starts[:, None] + np.where(mask, column, 0), mask


# Texts are drawn at random for this many batches and sorted by length within them: little padding, still random.
_POOL_BATCHES = 32


def epoch_batches(lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of all texts in random batches of similar length.

    The order depends on the seed and the epoch alone.

    Args:
        lengths: The number of tokens of each text. *Shape:* (texts,)
        batch_size: The number of texts a batch; one batch may have fewer.
        seed: The seed of the training.
        epoch: The epoch, from 0.
    """
    random = np.random.default_rng((seed, epoch))
    rows = random.permutation(len(lengths))
    pool = batch_size * _POOL_BATCHES
    batches = []
    for start in range(0, len(rows), pool):
        drawn = rows[start : start + pool]
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
        batches += [drawn[first : first + batch_size] for first in range(0, len(drawn), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


def plain_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of all texts in batches from short to long."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


class States(Protocol):
    """A list of texts as the input of a model, read batch by batch."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each text. *Shape:* (texts,)."""

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return the arguments of a model for some texts.

        For a head these are the hidden states and the attention mask.
        *Shapes:* (batch_size, tokens, width), (batch_size, tokens)
        """


class CachedStates:
    """The hidden states of texts at one tap, mapped from disk into memory: only what a batch needs is read.

    Texts are stored in the order of their length, so that the texts of a batch, which have similar lengths, are close.

    Attributes:
        lengths: The number of tokens of each text, in the order of the data. *Shape:* (texts,)
    """

    def __init__(self, path: Path, lengths: NDArray[np.int64], width: int) -> None:
        self.lengths = lengths
        self._starts = row_starts(lengths)
        # Mode c: torch refuses to share read-only memory without a warning. Nothing writes to it.
        self._states = torch.from_numpy(np.memmap(path, dtype=np.float16, mode="c", shape=(int(lengths.sum()), width)))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See ``States``. Padding is zero."""
        index, mask = ragged_index(self._starts[rows], self.lengths[rows])
        attention_mask = torch.from_numpy(mask.astype(np.int64))
        state = self._states[torch.from_numpy(index)].float() * attention_mask[..., None]
        return state, attention_mask


def length_order(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row numbers of texts from short to long, the order in the cache. *Shape:* (texts,)."""
    return np.argsort(lengths, kind="stable")


def row_starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each text's first token in the cache, in the order of the data. *Shape:* (texts,)."""
    order = length_order(lengths)
    starts = np.empty_like(lengths)
    starts[order] = np.cumsum(lengths[order]) - lengths[order]
    return starts


class TokenStates:
    """Texts as token ids, the input of a whole encoder.

    Attributes:
        lengths: The number of tokens of each text, in the order of the data. *Shape:* (texts,)
    """

    def __init__(self, rows: TokenRows, pad_token_id: int) -> None:
        self.lengths = rows.lengths
        self._rows, self._pad_token_id = rows, pad_token_id

    @property
    def vocabulary(self) -> Tensor:
        """The token ids that occur in the texts. *Shape:* (token ids,)."""
        return torch.from_numpy(np.unique(self._rows.ids).astype(np.int64))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return token ids, token types and attention mask. *Shape of each:* (batch_size, tokens)."""
        return self._rows.batch(rows, self._pad_token_id)


class SomeStates:
    """Some texts of a list.

    Attributes:
        lengths: The number of tokens of each text. *Shape:* (chosen,)
    """

    def __init__(self, states: States, rows: NDArray[np.int64]) -> None:
        self.lengths = states.lengths[rows]
        self._states, self._rows = states, rows

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """See ``States``."""
        return self._states.batch(self._rows[rows])


class JoinedStates:
    """Several lists of texts as one: a task's own, and those of other tasks.

    Attributes:
        lengths: The number of tokens of each text, those of the first list first. *Shape:* (texts,)
    """

    def __init__(self, parts: Sequence[tuple[CachedStates, NDArray[np.int64]]]) -> None:
        """Join some rows of several lists.

        Args:
            parts: Each list with the numbers of its rows. *Shape of the rows:* (chosen,)
        """
        self._parts = [states for states, _ in parts]
        self._part = np.concatenate([np.full(len(rows), place) for place, (_, rows) in enumerate(parts)])
        self._row = np.concatenate([rows for _, rows in parts])
        self.lengths = np.concatenate([states.lengths[rows] for states, rows in parts])

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """See ``States``."""
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
