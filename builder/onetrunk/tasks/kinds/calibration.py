"""Probabilities that mean what they say: temperature scaling on the dev data, and how far off they are.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 3 and 4.2. That labels are smoothed before
something is fitted to them is from Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2; here
they are smoothed towards the head's own probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 15
# What a temperature may be. It comes to a bound only where many rows leave the likelihood no end.
LEAST, MOST = 0.1, 10.0
_NEAR_BOUND = 1.01
# So many rows more, labelled by the head's own probabilities, speak for leaving these as they are: without them, few
# rows that are all right would make a head certain, and a single wrong one would make it know nothing.
_PRIOR_ROWS = 10
_DIGITS = 4

Array = NDArray[np.float64]


def calibrate(raw: NDArray[Any], targets: NDArray[np.int64]) -> dict[str, Any]:
    """The temperature by which raw outputs must be divided so that the dev labels are likeliest.

    Ten more rows count beside them, whose labels are as probable as the head says: few dev rows hardly move it.

    Args:
        raw: raw outputs. *Shape:* (rows, labels)
        targets: indices of labels. *Shape:* (rows,)

    Returns:
        ``temperature``, from LEAST to MOST; ``calibration_error`` before and after; and a ``note`` where the
        temperature is at a bound.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    values = raw.astype(np.float64)
    wanted = softmax(values, axis=-1) * _PRIOR_ROWS / len(values)
    wanted[np.arange(len(values)), targets] += 1

    def surprise(log_temperature: float) -> float:
        return -float(np.sum(wanted * log_softmax(values / np.exp(log_temperature), axis=-1)))

    found = minimize_scalar(surprise, bounds=(np.log(LEAST), np.log(MOST)), method="bounded")
    temperature = round(float(np.exp(found.x)), _DIGITS)
    errors = [round(calibration_error(softmax(values / one, axis=-1), targets), _DIGITS) for one in (1.0, temperature)]
    fitted = {"temperature": temperature, "calibration_error": {"before": errors[0], "after": errors[1]}}
    if LEAST * _NEAR_BOUND < temperature < MOST / _NEAR_BOUND:
        return fitted
    return {**fitted, "note": f"the temperature is at its bound, {LEAST:g} to {MOST:g}: do not trust the probabilities"}


def calibration_error(probabilities: Array, targets: NDArray[np.int64]) -> float:
    """The expected calibration error: how far a best label's probability is from how often it is right.

    Rows are put into 15 bins by the probability of their best label; the distances of the bins' means count by rows.

    Args:
        probabilities: *Shape:* (rows, labels)
        targets: indices of labels. *Shape:* (rows,)
    """
    sure, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == targets
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = [abs(sure[bins == one].sum() - right[bins == one].sum()) for one in np.unique(bins)]
    return float(sum(gaps) / len(sure))
