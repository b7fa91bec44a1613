"""Numbers in any range, that 32-bit floats have."""

from types import SimpleNamespace

import pytest
import torch

from onetrunk.tasks.kinds import get_kind

KIND = get_kind("regression")


def space(low, high):
    return SimpleNamespace(labels=None, range=(low, high), options={}, fitted={})


def test_negative_range_is_restored():
    range_ = space(-3.5, -1.0)
    KIND.check(range_)
    assert KIND.codec.encode("-3", range_) == pytest.approx(0.2)
    scores = KIND.output.scores(torch.tensor([[0.2]]), range_)
    assert scores.item() == pytest.approx(-3)
    assert KIND.answers.predictions(scores.numpy(), range_)[0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"label -0.5 is not a number from -3.5 to -1"):
        KIND.codec.encode(-0.5, range_)


@pytest.mark.parametrize(
    ("bounds", "described", "number", "shown"),
    [
        ((0, 5), "a number from 0 to 5", 3.14159, "3.14"),
        ((0, 1e-6), "a number from 0 to 1e-06", 4.2e-7, "0.00000042"),
        ((-0.02, 0.02), "a number from -0.02 to 0.02", 0.0123, "0.0123"),
        ((100_000_000, 200_000_000), "a number from 100000000 to 200000000", 1.5e8, "150000000.00"),
    ],
)
def test_a_number_is_shown_as_exactly_as_its_range_asks(bounds, described, number, shown):
    KIND.check(space(*bounds))
    assert KIND.output.describe(space(*bounds)) == described
    assert KIND.answers.format(torch.tensor([number], dtype=torch.float64).numpy(), space(*bounds)) == shown


@pytest.mark.parametrize("bounds", [(1e9, 1e9 + 1), (1e39, 2e39), (-1e39, 0)])
def test_a_range_that_32_bit_floats_cannot_divide_is_refused(bounds):
    with pytest.raises(ValueError, match="answers are 32-bit floats, which have too few numbers in it; subtract"):
        KIND.check(space(*bounds))


def test_a_number_of_too_many_digits_is_a_bad_label():
    with pytest.raises(ValueError, match=r"label 1000\d* is not a number from 0 to 1$"):
        KIND.codec.encode(10**400, space(0, 1))
