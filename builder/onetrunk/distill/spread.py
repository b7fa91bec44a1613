"""A figure that was measured several times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class Spread(BaseModel):
    """The median of several measurements, and their quartiles. The unit is in the name of what holds it.

    Attributes:
        median: half of the measurements are below it.
        low: a quarter of them is below it.
        high: a quarter of them is above it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[Any]) -> Spread:
        """The spread of these values, one at least."""
        low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
        return cls(median=median, low=low, high=high)
