"""What a training came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onetrunk.tasks.head_spec import HeadSpec


@dataclass(frozen=True)
class TrainResult:
    """A trained head and how it came about.

    Attributes:
        spec: the bundle's head.json: scores, recipe, data.
        bundle: the bundle's folder.
        already_there: the bundle was there already, of the same recipe, trunk and data, and nothing was trained.
        epoch_scores: dev scores after every epoch, by metric; none where nothing was trained.
        trunk_seconds: what the trunk's states took when they were computed, now or earlier.
        train_seconds: for the head, its evaluations included.
        cache_bytes: size of the states that it trained on and was measured on.
        notes: what a user should know: rows left out, texts cut, labels that never occur.
    """

    spec: HeadSpec
    bundle: Path
    already_there: bool = False
    epoch_scores: tuple[dict[str, float], ...] = ()
    trunk_seconds: float = 0.0
    train_seconds: float = 0.0
    cache_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The score by the metric that chose the epoch."""
        return self.spec.scores[self.spec.metric]
