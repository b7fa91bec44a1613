"""Metrics by name. If a metric is undefined on the given rows, its score is 0 and a note says why.

Sources: GLUE (Wang et al. 2018) for the metrics of classification and regression; scikit-learn's guide for average
precision and for micro and macro F1; the package seqeval for ``span_f1``, which it calls ``f1_score``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import did_you_mean
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import Kind, get_kind
from onetrunk.tasks.kinds.span_tags import spans_of

Array: TypeAlias = NDArray[Any]
WordSpan: TypeAlias = tuple[int, int, str]
"""The first and the last word of a span, and its type."""


class UndefinedError(Exception):
    """A metric has no value on the given rows. The message says why; the score counts as 0, with a note."""


@dataclass(frozen=True)
class Metric:
    """A metric, of which higher is better.

    Attributes:
        compute: ``(predictions, targets) -> score``, of what ``AnswerSpec.predictions`` and ``LabelCodec.hard``
            return. *Shape of both:* (rows, ...)
        exactly_two_labels: Whether it is about the second of two labels.
    """

    compute: Callable[[Array, Array], float]
    exactly_two_labels: bool = False


def measure(names: Sequence[str], predictions: Array, targets: Array) -> tuple[dict[str, float], tuple[str, ...]]:
    """Compute several metrics.

    Args:
        names: Names of metrics.
        predictions: What ``AnswerSpec.predictions`` returns. *Shape:* (rows, ...)
        targets: What ``LabelCodec.hard`` returns. *Shape:* (rows, ...)

    Returns:
        Metric -> score, and a note for each metric that is undefined and counts as 0.
    """
    scores: dict[str, float] = {}
    notes = []
    for name in names:
        try:
            scores[name] = float(METRICS[name].compute(predictions, targets))
        except UndefinedError as reason:
            scores[name] = 0.0
            notes.append(f"{name} is undefined and counts as 0: {reason}")
    return scores, tuple(notes)


def metric_of(scores: NDArray[np.float32], targets: Array, spec: HeadSpec) -> float:
    """Return the first metric of a head, as a share.

    Args:
        scores: Served scores. *Shape:* (rows, dims of the head)
        targets: The targets of the same rows. *Shape:* (rows, ...)
        spec: The head.
    """
    kind = get_kind(spec.kind)
    return measure([spec.metric], kind.answers.predictions(scores, spec), kind.codec.hard(targets))[0][spec.metric]


def check_metric(name: str, kind: Kind, labels: Sequence[str] | None) -> None:
    """Check that a task of this kind, with these labels or none, can be measured by a metric.

    Raises:
        ValueError: It cannot.
    """
    if name not in kind.metrics:
        # Those of another kind, and of two labels where there are more, would be refused next.
        fit = [one for one in kind.metrics if len(labels or ()) == 2 or not METRICS[one].exactly_two_labels]
        fault = f"does not fit kind {kind.name}" if name in METRICS else f"is not known{did_you_mean(name, fit)}"
        raise ValueError(f"metric {name!r:.80} {fault}; allowed are {', '.join(fit)}")
    if METRICS[name].exactly_two_labels and len(labels or ()) != 2:
        raise ValueError(f"metric {name} is about the second of two labels; for more labels, use macro_f1")


def _accuracy(predictions: Array, targets: Array) -> float:
    return float(np.mean(predictions == targets))


def _f1(predictions: Array, targets: Array) -> float:
    # GLUE's F1 is that of label 1: `equivalent`, `duplicate`.
    from sklearn.metrics import f1_score

    if not (predictions == 1).any() and not (targets == 1).any():
        raise UndefinedError("the second label is neither in the data nor in the answers")
    return float(f1_score(targets, predictions, pos_label=1, average="binary", zero_division=0))


def _macro_f1(predictions: Array, targets: Array) -> float:
    """Return the mean of the labels' F1, without labels that neither the data nor the answers have.

    *Shape of both:* (rows,) with label indices, or (rows, labels) as for ``_label_counts``
    """
    from sklearn.metrics import f1_score

    if predictions.ndim == 1:
        return float(f1_score(targets, predictions, average="macro", zero_division=0))
    correct, predicted, actual = _label_counts(predictions, targets)
    present = predicted + actual > 0
    return float(np.mean(2 * correct[present] / (predicted + actual)[present]))


def _micro_f1(predictions: Array, targets: Array) -> float:
    """Return F1 over all decisions on a label of a text together; shapes as for ``_label_counts``."""
    correct, predicted, actual = (counts.sum() for counts in _label_counts(predictions, targets))
    return float(2 * correct / (predicted + actual))


def _label_counts(predictions: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Return how often each label was predicted correctly, was predicted, and is in the data. *Shape:* (labels,) each.

    Args:
        predictions: Margins: a label holds if its margin is 0 or more. *Shape:* (rows, labels)
        targets: 1 if a label holds, else 0. *Shape:* (rows, labels)
    """
    # Counted here, since scikit-learn takes a single column for label indices, where "no" would be a label.
    held, actual = predictions >= 0, targets > 0
    if not actual.any():
        raise UndefinedError("no row has a label")
    return (held & actual).sum(axis=0), held.sum(axis=0), actual.sum(axis=0)


def _matthews(predictions: Array, targets: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    _must_vary(predictions, targets)
    return float(matthews_corrcoef(targets, predictions))


def _mean_average_precision(predictions: Array, targets: Array) -> float:
    """Return the mean of the labels' average precision, without labels that no row has."""
    from sklearn.metrics import average_precision_score

    present = targets.any(axis=0)
    if not present.any():
        raise UndefinedError("no row has a label")
    return float(average_precision_score(targets[:, present], predictions[:, present], average="macro"))


def _pearson(predictions: Array, targets: Array) -> float:
    from scipy.stats import pearsonr

    _must_vary(predictions, targets)
    return float(pearsonr(predictions, targets)[0])


def _spearman(predictions: Array, targets: Array) -> float:
    from scipy.stats import spearmanr

    _must_vary(predictions, targets)
    return float(spearmanr(predictions, targets)[0])


def _must_vary(predictions: Array, targets: Array) -> None:
    if len(targets) < 2:
        raise UndefinedError("a correlation needs two rows or more")
    for name, values in (("answers", predictions), ("data", targets)):
        if (values == values[0]).all():
            raise UndefinedError(f"all {name} are the same")


def span_f1(predictions: Array, targets: Array) -> float:
    """Return F1 over the spans of all texts; a span is correct if its first word, its last word and its type are.

    Args:
        predictions: Tag indices; the number of tokens may differ from that of the targets. *Shape:* (rows, tokens)
        targets: Tag and word of each token, as the ``tagging`` kind has them. *Shape:* (rows, tokens, 2)

    Raises:
        UndefinedError: The data have no span.
    """
    correct = predicted = actual = 0
    for found, expected in word_spans(predictions, targets):
        correct += len(found & expected)
        predicted += len(found)
        actual += len(expected)
    if not actual:
        raise UndefinedError("no row has a span")
    return 2 * correct / (predicted + actual)


def token_accuracy(predictions: Array, targets: Array) -> float:
    """Return the share of words whose first piece has the right tag.

    Args:
        predictions: Tag indices; the number of tokens may differ from that of the targets. *Shape:* (rows, tokens)
        targets: Tag and word of each token, as the ``tagging`` kind has them. *Shape:* (rows, tokens, 2)

    Raises:
        UndefinedError: The data have no word.
    """
    width = min(predictions.shape[1], targets.shape[1])
    found, (tags, words) = predictions[:, :width], np.moveaxis(targets[:, :width], 2, 0)
    first = (words >= 0) & (np.diff(words, axis=1, prepend=-1) != 0)
    # Words beyond the longest prediction count as wrong.
    all_first = (targets[..., 1] >= 0) & (np.diff(targets[..., 1], axis=1, prepend=-1) != 0)
    if not all_first.any():
        raise UndefinedError("no row has a word")
    return float((found == tags)[first].sum() / all_first.sum())


def word_spans(predictions: Array, targets: Array) -> Iterator[tuple[set[WordSpan], set[WordSpan]]]:
    """Yield the predicted spans and those of the data, for each row.

    Args:
        predictions: Tag indices; the number of tokens may differ from that of the targets. *Shape:* (rows, tokens)
        targets: Tag and word of each token, as the ``tagging`` kind has them. *Shape:* (rows, tokens, 2)
    """
    for row, (tags, words) in zip(predictions, np.moveaxis(targets, 2, 1), strict=True):
        yield _in_words(row[: len(words)], words), _in_words(tags, words)


def _in_words(tags: Array, words: Array) -> set[WordSpan]:
    """Return spans of the data's words; a word is in one span at most, the first that contains one of its pieces.

    A span that begins inside the last word of another one begins with the next word, if it reaches that far. Clients do
    the same with the words of the text, which are shorter: a hyphen or an apostrophe ends a word there too.
    """
    # Tags of special tokens, of blanks and of padding are not part of a text.
    words = words[: len(tags)]
    tags, words = tags[words >= 0], words[words >= 0]
    types = [str(one) for one in range(int(tags.max(initial=0)) // 2 + 1)]
    found: list[WordSpan] = []
    for first, last, kind in spans_of(tags.tolist(), types):
        taken = found[-1][1] if found else -1
        left = [int(word) for word in words[first : last + 1] if word > taken]
        if left:
            found.append((left[0], left[-1], kind))
    return set(found)


def _cosine(predictions: Array, targets: Array) -> float:
    """Return the mean cosine of vectors of length 1. *Shape of both:* (rows, width)."""
    return float((predictions * targets).sum(axis=-1).mean())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1, exactly_two_labels=True),
    "macro_f1": Metric(_macro_f1),
    "matthews": Metric(_matthews),
    # GLUE's summary takes the mean if a task has two metrics.
    "f1_accuracy": Metric(lambda p, t: (_f1(p, t) + _accuracy(p, t)) / 2, exactly_two_labels=True),
    "mean_average_precision": Metric(_mean_average_precision),
    "micro_f1": Metric(_micro_f1),
    "span_f1": Metric(span_f1),
    "token_accuracy": Metric(token_accuracy),
    "cosine": Metric(_cosine),
    "pearson": Metric(_pearson),
    "spearman": Metric(_spearman),
    "pearson_spearman": Metric(lambda p, t: (_pearson(p, t) + _spearman(p, t)) / 2),
}
