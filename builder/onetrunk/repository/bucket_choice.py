"""Buckets that fit the lengths of real texts, and how much padding buckets come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Cost = Callable[[int], float]


def tokens(length: int) -> float:
    """The cost of a padded text that counts its tokens, and nothing else."""
    return float(length)


def choose_buckets(
    lengths: Mapping[int, int], max_length: int, most: int, step: int = 1, cost: Cost = tokens
) -> tuple[int, ...]:
    """The buckets that make these texts cheapest, each text padded on its own. Exact, and the same every time.

    Args:
        lengths: length in tokens -> how many texts have it. Longer texts than ``max_length`` are cut there.
        max_length: the last bucket, whatever the lengths are: any text has to fit.
        most: how many buckets there may be at most. Fewer are given where more would save nothing.
        step: buckets are multiples of it, but for the last one.
        cost: what one text costs when it is padded to a length; never less for a greater length. Tokens by default;
            with ``lambda n: n + n * n / 2000``, say, attention's quadratic part counts as well.

    Returns:
        Buckets in tokens, rising, the last one ``max_length``.
    """
    # A bucket that no text needs, or that is longer than its longest text needs, is never better than a shorter one.
    needed = {min(-(-length // step) * step, max_length) for length, texts in lengths.items() if texts}
    sizes = np.array(sorted(needed | {max_length}))
    costs = np.array([cost(int(size)) for size in sizes])
    below = _texts_below(lengths, sizes)
    # total[i, j]: what the texts longer than size j and not longer than size i cost when they are padded to size i.
    step_cost = (below[:, None] - below[None, :]) * costs[:, None]
    step_cost[np.triu_indices(len(sizes))] = np.inf
    # cheapest[i]: the least cost of all texts not longer than size i in so many buckets, the last of them size i.
    cheapest, before = below * costs, []
    best = cheapest[-1]
    chosen: tuple[int, ...] = (max_length,)
    for _ in range(1, min(most, len(sizes))):
        totals = cheapest[None, :] + step_cost
        before.append(totals.argmin(axis=1))
        cheapest = totals.min(axis=1)
        if cheapest[-1] < best:
            best, chosen = cheapest[-1], _trace(sizes, before)
    return chosen


def padding_share(lengths: Mapping[int, int], buckets: Sequence[int]) -> float:
    """The share of padding in all tokens that are sent, one text a request; 0 where there are no texts.

    Args:
        lengths: length in tokens -> how many texts have it. Longer ones than the last bucket are cut there.
        buckets: rising.
    """
    kept = sent = 0
    for length, texts in lengths.items():
        cut = min(length, buckets[-1])
        kept += cut * texts
        sent += next(bucket for bucket in buckets if bucket >= cut) * texts
    return 1 - kept / sent if sent else 0.0


def _texts_below(lengths: Mapping[int, int], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many texts each size holds, the last one all of them. *Shape:* (sizes,)."""
    counts = np.zeros(len(sizes))
    for length, texts in lengths.items():
        counts[np.searchsorted(sizes, min(length, sizes[-1]))] += texts
    return np.cumsum(counts)


def _trace(sizes: NDArray[np.int64], before: Sequence[NDArray[np.int64]]) -> tuple[int, ...]:
    """The buckets that lead to the last size, by which size came before which."""
    place, found = len(sizes) - 1, []
    for previous in (*reversed(before), None):
        found.append(int(sizes[place]))
        if previous is not None:
            place = previous[place]
    return tuple(reversed(found))
