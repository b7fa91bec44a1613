"""The reference of a head: its answers on the dev data, summarised by hand and by the kinds."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import entropy

from onetrunk.protocol.reference import Reference
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.span_tags import bio_tags, spans_of


class Config:
    def __init__(self, labels=None, bounds=None, options=None, fitted=None):
        self.labels, self.range, self.options, self.fitted = labels, bounds, options or {}, fitted or {}


def reference(kind, scores, **config):
    return get_kind(kind).answers.reference(np.array(scores, dtype=np.float32), Config(**config))


def test_classification_by_hand():
    scores = [[0.92, 0.04, 0.04], [0.5, 0.3, 0.2], [0.1, 0.85, 0.05], [0.35, 0.35, 0.3]]
    found = reference("classification", scores, labels=("a", "b", "c"), options={"none_below": 0.4})
    assert (found.rows, found.labels, found.none_of_these) == (4, (0.5, 0.25, 0.0), 0.25)
    assert found.confidence == (0, 0, 0, 0.25, 0, 0.25, 0, 0, 0.25, 0.25)
    expected = np.mean([entropy(row, base=3) for row in scores])
    assert found.entropy == pytest.approx(expected, abs=1e-5)
    assert (found.numbers, found.spans) == (None, None)


def test_multilabel_counts_each_label_by_its_own_threshold():
    scores = [[0.92, 0.4], [0.2, 0.35], [0.55, 0.1], [0.1, 0.05]]
    found = reference("multilabel", scores, labels=("a", "b"), fitted={"thresholds": [0.6, 0.3]})
    assert (found.labels, found.none_of_these) == ((0.25, 0.5), 0.5)
    assert found.confidence == (0, 0.25, 0, 0.25, 0, 0.25, 0, 0, 0, 0.25)
    expected = np.mean([entropy([one, 1 - one], base=2) for row in scores for one in row])
    assert found.entropy == pytest.approx(expected, abs=1e-5)


def test_regression_counts_tenths_of_the_range_and_its_outside():
    found = reference("regression", [[-1.2], [-0.9], [1.0], [2.9], [3.5]], bounds=(-1.0, 3.0))
    assert found.numbers == (0.4, 0, 0, 0, 0, 0.2, 0, 0, 0, 0.4)
    assert (found.rows, found.labels, found.confidence, found.entropy) == (5, None, None, None)


def test_tagging_agrees_with_the_reading_of_spans():
    draw, types = np.random.default_rng(0), ("x", "y", "z")
    tags = draw.integers(0, len(bio_tags(types)), size=(200, 9)) * (draw.random((200, 9)) < 0.3)
    tags[:, -2:] = -1  # padding
    tags[:20] = np.where(tags[:20] < 0, -1, 0)
    found = reference("tagging", np.stack([tags, np.full(tags.shape, 0.9)], axis=-1), labels=types)
    spans = [spans_of(row, types) for row in tags.tolist()]
    assert found.spans == pytest.approx(np.mean([len(row) for row in spans]), abs=1e-3)
    for kind, share in zip(types, found.labels, strict=True):
        assert share == pytest.approx(np.mean([any(one == kind for *_, one in row) for row in spans]), abs=1e-5)
    assert found.none_of_these == pytest.approx(np.mean([not row for row in spans]), abs=1e-5)


def head(**changes):
    return HeadSpec.model_validate(
        {
            "task": "mood", "kind": "classification", "form": "single", "labels": ("bad", "good"), "tap": 1,
            "layers": 1, "trunk": "t", "width": 8, "max_length": 8, "metric": "accuracy", "scores": {}, "created": "",
            "onetrunk_version": "0", **changes,
        }
    )  # fmt: skip


def test_a_bundle_without_a_reference_is_read():
    assert head().reference is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 10, "labels": [0.2, 0.3, 0.5]},
        {"rows": 10, "labels": [0.2, 1.5]},
        {"rows": 0, "labels": [0.5, 0.5]},
        {"rows": 10, "confidence": [0.5, 0.5]},
        {"rows": 10, "entropy": float("nan")},
        {"rows": 10, "anything": 1},
    ],
)
def test_a_reference_that_does_not_fit_its_head_is_refused(wrong):
    with pytest.raises(ValidationError):
        head(reference=wrong)


def test_a_reference_of_the_most_labels_keeps_its_bounds():
    assert len(Reference(rows=1, labels=(0.0,) * 10_000).labels) == 10_000
    with pytest.raises(ValidationError):
        Reference(rows=1, labels=(0.0,) * 10_001)
