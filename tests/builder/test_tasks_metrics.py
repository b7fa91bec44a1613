"""Metrics against values worked out by hand, and where they have none."""

import numpy as np
import pytest

from builder.model.kinds.classification import Classification
from builder.model.kinds.multilabel import Multilabel
from builder.model.kinds.tagging import Tagging
from builder.tasks.metrics import METRICS, measure

# Of six rows: 2 true positives, 1 false positive, 1 false negative, 2 true negatives.
PREDICTIONS = np.array([1, 1, 1, 0, 0, 0])
TARGETS = np.array([1, 1, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 4 / 6),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("macro_f1", 2 / 3),
        ("matthews", (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3)),
        ("f1_accuracy", (2 / 3 + 4 / 6) / 2),
    ],
)
def test_metrics_on_labels(name, value):
    scores, notes = measure([name], PREDICTIONS, TARGETS)
    assert scores[name] == pytest.approx(value)
    assert notes == ()


def test_metrics_on_several_labels_a_text():
    """Two labels, three texts; by how much a score exceeds its label's threshold."""
    targets = np.array([[1, 0], [0, 1], [1, 1]])
    margins = np.array([[0.3, -0.1], [0.2, 0.4], [-0.2, 0.1]])
    # First label: ranked 1, 0, 1: (1/1 + 2/3) / 2. Second: 1, 1, 0: 1.
    scores, notes = measure(["mean_average_precision", "micro_f1", "macro_f1"], margins, targets)
    assert scores["mean_average_precision"] == pytest.approx((5 / 6 + 1) / 2)
    # Held by the thresholds: 1 of 2 and wrongly 1 of the first label, 2 of 2 of the second.
    assert scores["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx((0.5 + 1) / 2)
    assert notes == ()


def test_f1_is_that_of_the_second_label():
    # All wrong about label 0, which F1 of label 1 forgives in part and macro F1 does not.
    scores, _ = measure(["f1", "macro_f1"], np.array([1, 1, 1, 1]), np.array([1, 1, 1, 0]))
    assert scores["f1"] == pytest.approx(6 / 7)
    assert scores["macro_f1"] == pytest.approx(3 / 7)


def test_correlations():
    predictions, targets = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 2.0, 4.0, 3.0])
    scores, _ = measure(["pearson", "spearman", "pearson_spearman"], predictions, targets)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, targets)[0, 1])
    assert scores["spearman"] == pytest.approx(0.8)  # ranks 1 2 3 4 and 1 2 4 3: 1 - 6 * 2 / 60
    assert scores["pearson_spearman"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("predictions", "targets"),
    [([1], [1]), ([0], [0]), ([0, 0, 0], [0, 1, 0]), ([0, 1, 0], [1, 1, 1]), ([0, 0], [0, 0])],
)
def test_degenerate_rows_give_a_number_and_never_a_warning(name, predictions, targets):
    answered, expected = np.array(predictions), np.array(targets)
    if name in Tagging.metrics:
        # One text, its words in the place of the rows.
        answered, expected = answered[None], np.stack([expected, np.arange(len(expected))], axis=-1)[None]
    elif name in Multilabel.metrics and name not in Classification.metrics:
        # One label; it holds or not.
        answered, expected = Multilabel().right(answered)[:, None], expected[:, None]
    scores, notes = measure([name], answered, expected)
    assert 0 <= scores[name] <= 1
    assert all(note.startswith(f"{name} is not defined and counts as 0: ") for note in notes)


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "reason"),
    [
        ("pearson", [1.0], [2.0], "two rows"),
        ("spearman", [1.0, 1.0], [2.0, 3.0], "all answers are the same"),
        ("matthews", [0, 1], [1, 1], "all data are the same"),
        ("f1", [0, 0], [0, 0], "second label"),
    ],
)
def test_undefined_metric_says_why(name, predictions, targets, reason):
    scores, notes = measure([name], np.array(predictions), np.array(targets))
    assert scores == {name: 0.0}
    assert reason in notes[0]
