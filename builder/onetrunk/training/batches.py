"""Which texts make a batch: texts of similar length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# So many batches' texts are drawn at random and sorted by length among themselves: little padding, and still random.
_POOL_BATCHES = 32


def epoch_batches(lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """All texts once, in random batches of similar length.

    Args:
        lengths: tokens a text. *Shape:* (texts,)
        batch_size: texts a batch; one batch may have fewer.
        seed: the training's seed.
        epoch: the epoch, from 0.
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
    """All texts once, from short to long."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
