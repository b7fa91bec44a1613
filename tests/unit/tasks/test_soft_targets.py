"""Soft targets: probabilities as raw outputs, rows without any, and the order of labels."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from onetrunk.tasks.soft_targets import is_given, order_of, raw_of_probabilities


def test_softmax_and_sigmoid_return_the_probabilities():
    whole = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(softmax(raw_of_probabilities(whole, independent=False), axis=-1), whole, atol=1e-5)
    each = np.array([[0.9, 0.8], [0.0, 1.0]])
    np.testing.assert_allclose(expit(raw_of_probabilities(each, independent=True)), each, atol=1e-5)


def test_a_row_of_nan_is_not_given():
    raw = raw_of_probabilities(np.array([[0.5, 0.5], [np.nan, np.nan]]), independent=False)
    assert is_given(raw).tolist() == [True, False]


def test_labels_are_found_whatever_their_order():
    assert order_of(("ham", "spam"), ("spam", "ham")) == [1, 0]
    with pytest.raises(ValueError, match="lacks spam and has eggs; the task's labels are ham, spam"):
        order_of(("ham", "spam"), ("ham", "eggs"))
