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

    values = raw.astype(np.float64)

    def surprise(log_temperature: float) -> float:
        scaled = values / np.exp(log_temperature)
        return float(np.mean(_log_sum(scaled) - scaled[np.arange(len(scaled)), targets]))

    found = minimize_scalar(surprise, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded")
    temperature = round(float(np.exp(found.x)), _DIGITS)
    errors = [round(calibration_error(_softmax(values / one), targets), _DIGITS) for one in (1.0, temperature)]
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


def _log_sum(values: Array) -> Array:
    most = values.max(axis=-1, keepdims=True)
    found: Array = np.log(np.exp(values - most).sum(axis=-1)) + most[:, 0]
    return found


def _softmax(values: Array) -> Array:
    found: Array = np.exp(values - _log_sum(values)[:, None])
    return found
