"""The scores of one training, done with several seeds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class SeedScores:
    """Dev scores, as shares, one a seed; one at least."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (divided by one less than the number of seeds); None of one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.scores)
