"""Kinds: labels in, numbers for the loss; raw outputs in, scores for a user."""

from types import SimpleNamespace

import pytest
import torch

from builder.errors import UserError
from builder.model.kinds import get_kind

SENTIMENT = SimpleNamespace(labels=("negative", "positive"), range=None)
SIMILARITY = SimpleNamespace(labels=None, range=(1.0, 5.0))


def test_classification():
    kind = get_kind("classification")
    assert kind.outputs(SENTIMENT) == 2
    assert kind.encode("positive", SENTIMENT) == 1
    scores = kind.scores(torch.tensor([[0.0, 1.0986123]]), SENTIMENT)
    torch.testing.assert_close(scores, torch.tensor([[0.25, 0.75]]))
    # -log(0.75), by hand
    assert kind.loss(torch.tensor([[0.0, 1.0986123]]), torch.tensor([1])).item() == pytest.approx(0.2876821, abs=1e-6)


def test_classification_reads_labels_as_they_are_written():
    assert get_kind("classification").encode(1, SimpleNamespace(labels=("0", "1"), range=None)) == 1


def test_regression():
    kind = get_kind("regression")
    assert kind.outputs(SIMILARITY) == 1
    assert kind.encode("2", SIMILARITY) == 0.25
    assert kind.scores(torch.tensor([[0.25]]), SIMILARITY).item() == 2.0
    assert kind.loss(torch.tensor([[0.5], [1.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(0.125)


@pytest.mark.parametrize("label", ["good", "", None, 3])
def test_unknown_label_names_the_known_ones(label):
    with pytest.raises(ValueError, match="not one of: negative, positive"):
        get_kind("classification").encode(label, SENTIMENT)


@pytest.mark.parametrize("label", ["x", None, 0.99, 5.01, float("nan"), float("inf"), True])
def test_number_out_of_range_names_the_range(label):
    with pytest.raises(ValueError, match="not a number from 1 to 5"):
        get_kind("regression").encode(label, SIMILARITY)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match="known are: classification, regression"):
        get_kind("poetry")
