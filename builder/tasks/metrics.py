"""Metrics by name, as GLUE defines them. Where a metric is not defined, the score is 0 and a note says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]


class _UndefinedError(Exception):
    """The metric has no value on these rows; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A metric: the higher, the better.

    Attributes:
        on_labels: compares label indices; otherwise numbers.
        compute: ``(predictions, targets)`` -> value. *Shape of both:* (rows,)
        exactly_two_labels: is about the second of two labels.
    """

    on_labels: bool
    compute: Callable[[Numbers, Numbers], float]
    exactly_two_labels: bool = False


def measure(names: Sequence[str], predictions: Numbers, targets: Numbers) -> tuple[dict[str, float], tuple[str, ...]]:
    """Scores by the name of their metric, and a note for each metric that had no value and counts as 0.

    Args:
        names: names of metrics.
        predictions: label indices, or numbers. *Shape:* (rows,)
        targets: the same of the data. *Shape:* (rows,)
    """
    scores: dict[str, float] = {}
    notes = []
    for name in names:
        try:
            scores[name] = float(METRICS[name].compute(predictions, targets))
        except _UndefinedError as reason:
            scores[name] = 0.0
            notes.append(f"{name} is not defined and counts as 0: {reason}")
    return scores, tuple(notes)


def default_metric(uses_range: bool) -> str:
    """The metric of a task that names none."""
    return "pearson_spearman" if uses_range else "accuracy"


def check_metric(name: str, kind: str, labels: Sequence[str] | None) -> None:
    """Raises ValueError where a task of this kind, with these labels or none, cannot be measured by the metric."""
    metric = METRICS.get(name)
    if metric is None or metric.on_labels != (labels is not None):
        fitting = [other for other, known in METRICS.items() if known.on_labels == (labels is not None)]
        raise ValueError(f"metric {name} does not fit kind {kind}; allowed are {', '.join(fitting)}")
    if metric.exactly_two_labels and len(labels or ()) != 2:
        raise ValueError(f"metric {name} is about the second of two labels; for more, take macro_f1")


def _accuracy(predictions: Numbers, targets: Numbers) -> float:
    return float(np.mean(predictions == targets))


def _f1(predictions: Numbers, targets: Numbers) -> float:
    # GLUE's F1 is that of label 1: `equivalent`, `duplicate`.
    from sklearn.metrics import f1_score

    if not (predictions == 1).any() and not (targets == 1).any():
        raise _UndefinedError("the second label is neither in the data nor in the answers")
    return float(f1_score(targets, predictions, pos_label=1, average="binary", zero_division=0))


def _macro_f1(predictions: Numbers, targets: Numbers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predictions, average="macro", zero_division=0))


def _matthews(predictions: Numbers, targets: Numbers) -> float:
    from sklearn.metrics import matthews_corrcoef

    _must_vary(predictions, targets)
    return float(matthews_corrcoef(targets, predictions))


def _pearson(predictions: Numbers, targets: Numbers) -> float:
    from scipy.stats import pearsonr

    _must_vary(predictions, targets)
    return float(pearsonr(predictions, targets)[0])


def _spearman(predictions: Numbers, targets: Numbers) -> float:
    from scipy.stats import spearmanr

    _must_vary(predictions, targets)
    return float(spearmanr(predictions, targets)[0])


def _must_vary(predictions: Numbers, targets: Numbers) -> None:
    if len(targets) < 2:
        raise _UndefinedError("a correlation needs two rows or more")
    for name, values in (("answers", predictions), ("data", targets)):
        if (values == values[0]).all():
            raise _UndefinedError(f"all {name} are the same")


METRICS: dict[str, Metric] = {
    "accuracy": Metric(True, _accuracy),
    "f1": Metric(True, _f1, exactly_two_labels=True),
    "macro_f1": Metric(True, _macro_f1),
    "matthews": Metric(True, _matthews),
    # GLUE's summary takes the mean where a task has two metrics.
    "f1_accuracy": Metric(True, lambda p, t: (_f1(p, t) + _accuracy(p, t)) / 2, exactly_two_labels=True),
    "pearson": Metric(False, _pearson),
    "spearman": Metric(False, _spearman),
    "pearson_spearman": Metric(False, lambda p, t: (_pearson(p, t) + _spearman(p, t)) / 2),
}
