"""Metrics by name. Where a metric has no value, the score is 0 and a note says why.

Sources: GLUE (Wang et al. 2018) for those of one label and of numbers; average precision, micro and macro F1 are those
of scikit-learn's guide; ``span_metrics`` says its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import UndefinedError
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import Kind, get_kind
from onetrunk.tasks.span_metrics import span_f1, token_accuracy

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A metric: the higher, the better.

    Attributes:
        compute: ``(predictions, targets)`` -> value, of what ``Kind.predictions`` and ``Kind.targets`` give. *Shape of
            both:* (rows, ...)
        exactly_two_labels: is about the second of two labels.
    """

    compute: Callable[[Numbers, Numbers], float]
    exactly_two_labels: bool = False


def measure(names: Sequence[str], predictions: Numbers, targets: Numbers) -> tuple[dict[str, float], tuple[str, ...]]:
    """Scores by the name of their metric, and a note for each metric that had no value and counts as 0.

    Args:
        names: names of metrics.
        predictions: what the kind's ``predictions`` gives. *Shape:* (rows, ...)
        targets: what its ``targets`` gives. *Shape:* (rows, ...)
    """
    scores: dict[str, float] = {}
    notes = []
    for name in names:
        try:
            scores[name] = float(METRICS[name].compute(predictions, targets))
        except UndefinedError as reason:
            scores[name] = 0.0
            notes.append(f"{name} is not defined and counts as 0: {reason}")
    return scores, tuple(notes)


def metric_of(scores: NDArray[np.float32], targets: Numbers, spec: HeadSpec) -> float:
    """A head's first metric, as a share.

    Args:
        scores: what was served. *Shape:* (rows, dims of the head)
        targets: of the same rows; see Kind.targets. *Shape:* (rows, ...)
        spec: the head.
    """
    return measure([spec.metric], get_kind(spec.kind).answers.predictions(scores, spec), targets)[0][spec.metric]


def check_metric(name: str, kind: Kind, labels: Sequence[str] | None) -> None:
    """Raises ValueError where a task of this kind, with these labels or none, cannot be measured by the metric."""
    if name not in kind.metrics:
        raise ValueError(f"metric {name} does not fit kind {kind.name}; allowed are {', '.join(kind.metrics)}")
    if METRICS[name].exactly_two_labels and len(labels or ()) != 2:
        raise ValueError(f"metric {name} is about the second of two labels; for more, take macro_f1")


def _accuracy(predictions: Numbers, targets: Numbers) -> float:
    return float(np.mean(predictions == targets))


def _f1(predictions: Numbers, targets: Numbers) -> float:
    # GLUE's F1 is that of label 1: `equivalent`, `duplicate`.
    from sklearn.metrics import f1_score

    if not (predictions == 1).any() and not (targets == 1).any():
        raise UndefinedError("the second label is neither in the data nor in the answers")
    return float(f1_score(targets, predictions, pos_label=1, average="binary", zero_division=0))


def _macro_f1(predictions: Numbers, targets: Numbers) -> float:
    """The mean of the labels' F1, without labels that neither the data nor the answers have.

    Args:
        predictions: indices of labels, *Shape:* (rows,); or see _label_counts.
        targets: of the same shape.
    """
    from sklearn.metrics import f1_score

    if predictions.ndim == 1:
        return float(f1_score(targets, predictions, average="macro", zero_division=0))
    right, answered, wanted = _label_counts(predictions, targets)
    there = answered + wanted > 0
    return float(np.mean(2 * right[there] / (answered + wanted)[there]))


def _micro_f1(predictions: Numbers, targets: Numbers) -> float:
    """F1 of all decisions about a label of a text together; see _label_counts."""
    right, answered, wanted = (counts.sum() for counts in _label_counts(predictions, targets))
    return float(2 * right / (answered + wanted))


def _label_counts(predictions: Numbers, targets: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """How often each label was answered rightly, was answered, and is in the data. *Shape of each:* (labels,).

    Args:
        predictions: a label holds from 0 on; see ``Multilabel.predictions``. *Shape:* (rows, labels)
        targets: 1 where it holds, 0 where not. *Shape:* (rows, labels)
    """
    # Counted here, since scikit-learn takes a single column for indices of labels, of which "no" would be one.
    held, wanted = predictions >= 0, targets > 0
    if not wanted.any():
        raise UndefinedError("no row has a label")
    return (held & wanted).sum(axis=0), held.sum(axis=0), wanted.sum(axis=0)


def _matthews(predictions: Numbers, targets: Numbers) -> float:
    from sklearn.metrics import matthews_corrcoef

    _must_vary(predictions, targets)
    return float(matthews_corrcoef(targets, predictions))


def _mean_average_precision(predictions: Numbers, targets: Numbers) -> float:
    """The mean over labels of the average precision of a label's scores; labels that no row has are left out."""
    from sklearn.metrics import average_precision_score

    present = targets.any(axis=0)
    if not present.any():
        raise UndefinedError("no row has a label")
    return float(average_precision_score(targets[:, present], predictions[:, present], average="macro"))


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
        raise UndefinedError("a correlation needs two rows or more")
    for name, values in (("answers", predictions), ("data", targets)):
        if (values == values[0]).all():
            raise UndefinedError(f"all {name} are the same")


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1, exactly_two_labels=True),
    "macro_f1": Metric(_macro_f1),
    "matthews": Metric(_matthews),
    # GLUE's summary takes the mean where a task has two metrics.
    "f1_accuracy": Metric(lambda p, t: (_f1(p, t) + _accuracy(p, t)) / 2, exactly_two_labels=True),
    "mean_average_precision": Metric(_mean_average_precision),
    "micro_f1": Metric(_micro_f1),
    "span_f1": Metric(span_f1),
    "token_accuracy": Metric(token_accuracy),
    "pearson": Metric(_pearson),
    "spearman": Metric(_spearman),
    "pearson_spearman": Metric(lambda p, t: (_pearson(p, t) + _spearman(p, t)) / 2),
}
