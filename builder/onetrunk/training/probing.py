"""Which tap a head should stand on, where nobody says: one-layer heads on every tap are trained briefly."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onetrunk.progress import ProgressCallback, silent
from onetrunk.tasks import Recipe
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

MOST_ROWS = 8_600
"""For more train texts than these, the states of all taps take much room, and taps are not probed unasked."""

# So few steps tell taps apart; a small task makes them in more epochs.
_STEPS = 150
_LEAST_EPOCHS, _MOST_EPOCHS = 2, 10
# The learning rate of a one-layer head on a trunk of this width; on a wider one it is lower.
_RATE, _WIDTH = 3e-4, 384


def probe_epochs(rows: int, batch_size: int) -> int:
    """Return how many epochs a probe is trained.

    Args:
        rows: The number of train texts.
        batch_size: The number of texts in a step.
    """
    return min(_MOST_EPOCHS, max(_LEAST_EPOCHS, math.ceil(_STEPS * batch_size / max(rows, 1))))


def best_tap(scores: Mapping[int, float]) -> int:
    """Return the tap with the best score; of equal ones the lowest, on which a head costs least."""
    return max(scores, key=lambda tap: (scores[tap], -tap))


def probe_taps(
    task: str, experiment: Experiment, recipe: Recipe, progress: ProgressCallback = silent
) -> dict[int, float]:
    """Train a one-layer head on every tap that a head may have, and return their scores. What is recorded is found.

    Args:
        task: The task.
        experiment: The trunk, the data, the cache and the records.
        recipe: The recipe of the head that is to be trained: it has so many layers.
        progress: Called as the trunk's pass and the trainings go on.

    Raises:
        OneTrunkError: A training diverged, or the disk is full.
    """
    taps = range(experiment.trunk.depth - recipe.layers + 1)
    for split in SPLITS:
        experiment.states(task, split, taps, progress)
    update = {
        "layers": 1,
        "epochs": probe_epochs(len(experiment.examples(task, "train")), recipe.batch_size),
        "learning_rate": _RATE * min(1.0, _WIDTH / experiment.trunk.width),
    }
    specs = {
        tap: RunSpec(task=task, role="fork", recipe=recipe.model_copy(update={**update, "tap": tap})) for tap in taps
    }
    return {tap: execute(spec, experiment, weights=False, progress=progress).score for tap, spec in specs.items()}
