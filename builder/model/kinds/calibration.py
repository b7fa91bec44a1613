"""Probabilities that mean what they say: temperature scaling on the dev data, and how far off they are.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 3 and 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 15
# Beyond these a head is right, or wrong, on all dev rows, and its likelihood knows no end.
_LEAST, _MOST = 0.1, 10.0
_DIGITS = 4

Array = NDArray[np.float64]


def calibrate(raw: NDArray[Any], targets: NDArray[np.int64]) -> dict[str, Any]:
    """The temperature by which raw outputs must be divided so that the dev labels are likeliest.

    Args:
        raw: raw outputs. *Shape:* (rows, labels)
        targets: indices of labels. *Shape:* (rows,)

    Returns:
        ``temperature``, and ``calibration_error`` before and after.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    values = raw.astype(np.float64)

    def surprise(log_temperature: float) -> float:
        return -float(np.mean(log_softmax(values / np.exp(log_temperature), axis=-1)[np.arange(len(values)), targets]))

    found = minimize_scalar(surprise, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded")
    temperature = round(float(np.exp(found.x)), _DIGITS)
    errors = [round(calibration_error(softmax(values / one, axis=-1), targets), _DIGITS) for one in (1.0, temperature)]
    return {"temperature": temperature, "calibration_error": {"before": errors[0], "after": errors[1]}}


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
