"""A learning curve: how well a head does that is trained on a part of its texts, and whether more labels would help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onetrunk.progress import ProgressCallback, silent
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.training.evaluation import commonest_score
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

SHARES = (1 / 8, 1 / 4, 1 / 2)
# A part of the texts makes fewer steps an epoch, so it gets more epochs, as many times at most.
_MOST_EPOCHS = 4
# The noise of a perfect score on a few rows is not 0.
_LEAST_DOUBT = 0.05


@dataclass(frozen=True)
class CurvePoint:
    """A head that is trained on a part of the texts.

    Attributes:
        share: The share of the texts.
        texts: Their number.
        score: The dev score after the best epoch, as a share.
        epochs: The number of epochs.
        seconds: What its training took.
    """

    share: float
    texts: int
    score: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class LearningCurve:
    """The points of a learning curve, from few texts to all, and what they say.

    Attributes:
        metric: The metric of the scores.
        points: The points. The texts of each are among those of the next.
        noise: About how much a score may differ by chance, from the number of dev rows.
        note: How many texts were needed, and whether more labels would help.
    """

    metric: str
    points: tuple[CurvePoint, ...]
    noise: float
    note: str

    def as_values(self) -> dict[str, Any]:
        """Return the curve as JSON values."""
        return asdict(self)


def learning_curve(
    spec: RunSpec, experiment: Experiment, head: HeadSpec, progress: ProgressCallback = silent
) -> LearningCurve:
    """Train a head on an eighth, a quarter and a half of its texts. What is recorded is not trained again.

    Args:
        spec: The training on all texts.
        experiment: The trunk, the data, the cache, and the records of the curve.
        head: What came of the training on all texts.
        progress: Called after each step.

    Raises:
        OneTrunkError: A training diverged, or the disk is full.
    """
    points = []
    for share in SHARES:
        epochs = round(spec.recipe.epochs * min(1 / share, _MOST_EPOCHS))
        part = spec.model_copy(
            update={"share": share, "recipe": spec.recipe.model_copy(update={"epochs": epochs})},
        )
        fraction = f"1/{round(1 / share)} of the texts"

        def show(what: str, done: int, total: int, fraction: str = fraction) -> None:
            progress(f"{what}, {fraction}", done, total)

        run = execute(part, experiment, progress=show)
        points.append(CurvePoint(share, run.texts, run.score, epochs, run.seconds))
    score, rows = head.scores[head.metric], head.data["train_rows"]
    points.append(CurvePoint(1.0, rows, score, spec.recipe.epochs, head.recipe["train_seconds"]))
    dev_rows = head.data["dev_rows"]
    noise = noise_of(score, dev_rows)
    commonest = commonest_score(experiment.task(spec.task), experiment.targets(spec.task, "dev"))
    return LearningCurve(head.metric, tuple(points), noise, curve_note(points, head.metric, noise, dev_rows, commonest))


def noise_of(score: float, rows: int) -> float:
    """Return the standard error of a share that is measured on some rows, which other metrics have about as well."""
    likely = min(max(score, _LEAST_DOUBT), 1 - _LEAST_DOUBT)
    return math.sqrt(likely * (1 - likely) / rows)


def curve_note(
    points: Sequence[CurvePoint], metric: str, noise: float, dev_rows: int, commonest: float = -math.inf
) -> str:
    """Return how many texts were needed, and whether more labels would help.

    Args:
        points: The points, from few texts to all; two or more.
        metric: The metric of the scores.
        noise: See ``noise_of``.
        dev_rows: The number of dev rows.
        commonest: The score of a head that gives the commonest answer to every text.
    """
    *_, half, full = points
    if full.score <= commonest:
        return (
            f"{metric} {100 * full.score:.1f} of all {full.texts:,} texts is no better than the commonest answer "
            f"alone, {100 * commonest:.1f}, so nothing can be said about more labels yet"
        )
    gain = full.score - half.score
    doubt = f"the noise of {dev_rows:,} dev rows is about {100 * noise:.1f}"
    rise = f"from {half.texts:,} to {full.texts:,} texts, {metric} changed by {100 * gain:+.1f} points; {doubt}"
    if gain > noise:
        return f"{rise}: more labels would help"
    enough = next(point for point in points if point.score >= full.score - noise)
    if gain > noise / 2 or enough is full:
        return f"{rise}: more labels may help, and more dev rows would tell"
    return (
        f"{rise}: {enough.texts:,} texts do as well as all {full.texts:,}, within that noise, so more labels of this "
        "sort would hardly help; another tap or more layers may"
    )
