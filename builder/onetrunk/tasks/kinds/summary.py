"""Shares and histograms of answers, for the reference of a head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.reference import BINS

# Shares go into configs that every client reads. Their last digit is far below what a window of answers can show.
_DIGITS = 5


def rounded(shares: NDArray[Any]) -> tuple[float, ...]:
    """Return shares with as many digits as are kept. *Shape:* (shares,)."""
    return tuple(round(float(share), _DIGITS) for share in shares)


def mean_share(values: NDArray[Any]) -> float:
    """Return the mean of values from 0 to 1. Rounding errors beyond these are cut off. *Shape:* (rows,)."""
    return round(float(np.clip(values.mean(), 0, 1)), _DIGITS)


def histogram(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the share of values in each of the bins from 0 to 1. What lies outside is in the first or the last one.

    Args:
        values: *Shape:* (rows,)
    """
    places = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
    return rounded(np.bincount(places, minlength=BINS) / len(values))
