"""Metrics against values worked out by hand, and where they have none."""

import numpy as np
import pytest

from onetrunk.tasks.kinds.classification import CLASSIFICATION
from onetrunk.tasks.kinds.embedding import EMBEDDING
from onetrunk.tasks.kinds.multilabel import MULTILABEL
from onetrunk.tasks.kinds.tagging import TAGGING
from onetrunk.tasks.metrics import METRICS, measure

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


def test_metrics_on_one_label_that_holds_or_not():
    """One true positive, one false negative, two true negatives."""
    targets, margins = np.array([[1], [1], [0], [0]]), np.array([[0.3], [-0.1], [-0.2], [-0.3]])
    scores, notes = measure(["mean_average_precision", "micro_f1", "macro_f1"], margins, targets)
    assert scores == {
        "mean_average_precision": 1,
        "micro_f1": pytest.approx(2 / 3),
        "macro_f1": pytest.approx(2 / 3),
    }
    assert notes == ()


@pytest.mark.parametrize(("answered", "expected"), [(-0.1, 1), (0.1, 1 / 2)])
def test_macro_f1_is_without_labels_that_neither_data_nor_answers_have(answered, expected):
    """Of several labels a text as of one: a label that no row has counts as 0 as soon as it is answered."""
    targets, margins = np.array([[1, 0], [0, 0]]), np.array([[0.3, answered], [-0.2, -0.1]])
    assert measure(["macro_f1"], margins, targets) == ({"macro_f1": pytest.approx(expected)}, ())


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


# Answers and data. Where a metric has no value on them, it is None.
DEGENERATE = [([1], [1]), ([0], [0]), ([0, 0, 0], [0, 1, 0]), ([0, 1, 0], [1, 1, 1]), ([0, 0], [0, 0])]
VALUES = {
    "accuracy": [1, 1, 2 / 3, 1 / 3, 1],
    "f1": [1, None, 0, 1 / 2, None],
    # Of the two labels in the third case 4/5 and 0, in the fourth 0 and 1/2.
    "macro_f1": [1, 1, 2 / 5, 1 / 4, 1],
    "matthews": [None] * 5,
    "f1_accuracy": [1, None, 1 / 3, (1 / 2 + 1 / 3) / 2, None],
    # All scores alike: precision is the share of rows that have the label.
    "mean_average_precision": [1, None, 1 / 3, 1, None],
    "micro_f1": [1, None, 0, 1 / 2, None],
    "span_f1": [1, None, 0, 1 / 2, None],
    "token_accuracy": [1, 1, 2 / 3, 1 / 3, 1],
    "cosine": [1, 1, 2 / 3, 1 / 3, 1],
    "pearson": [None] * 5,
    "spearman": [None] * 5,
    "pearson_spearman": [None] * 5,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("case", range(len(DEGENERATE)))
def test_degenerate_rows_give_a_number_or_a_note_and_never_a_warning(name, case):
    answered, expected = map(np.array, DEGENERATE[case])
    if name in TAGGING.metrics:
        # One text, its words in the place of the rows; 1 is a span's B-.
        answered, expected = answered[None], np.stack([expected, np.arange(len(expected))], axis=-1)[None]
    elif name in EMBEDDING.metrics:
        # Vectors that are the same or at a right angle.
        answered, expected = np.eye(2)[answered], np.eye(2)[expected]
    elif name in MULTILABEL.metrics and name not in CLASSIFICATION.metrics:
        # One label; it holds or not.
        answered, expected = MULTILABEL.answers.gold(answered)[:, None], expected[:, None]
    scores, notes = measure([name], answered, expected)
    value = VALUES[name][case]
    assert scores[name] == pytest.approx(value or 0)
    assert [note.startswith(f"{name} is undefined and counts as 0: ") for note in notes] == [True] * (value is None)


@pytest.mark.parametrize("name", MULTILABEL.metrics)
@pytest.mark.parametrize("margin", [-0.1, 0.1])
def test_where_no_row_has_a_label_nothing_is_measured(name, margin):
    scores, notes = measure([name], np.full((3, 2), margin), np.zeros((3, 2)))
    assert scores == {name: 0}
    assert notes == (f"{name} is undefined and counts as 0: no row has a label",)


@pytest.mark.parametrize("tag", [0, 1])
def test_where_no_row_has_a_span_no_spans_are_measured(tag):
    """Else an epoch that tags nothing would be the best."""
    scores, notes = measure(["span_f1"], np.full((2, 3), tag), np.stack([np.zeros((2, 3)), np.ones((2, 3))], axis=-1))
    assert scores == {"span_f1": 0}
    assert notes == ("span_f1 is undefined and counts as 0: no row has a span",)


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
