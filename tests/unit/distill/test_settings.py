"""The budgets of a search follow the trunk: its depth and its width."""

import pytest

from onetrunk.distill.settings import SearchSettings


@pytest.mark.parametrize(
    ("depth", "shapes"),
    [(12, [(5, 3), (3, 5)]), (6, [(2, 2), (1, 3)]), (22, [(9, 4), (5, 8)]), (4, [(1, 2)]), (2, []), (1, [])],
)
def test_long_heads_stand_on_low_taps_and_fit_the_trunk(depth, shapes):
    assert SearchSettings().long_shapes(depth) == shapes
    assert all(tap + layers <= depth for tap, layers in shapes)


def test_wider_trunks_learn_at_lower_rates():
    base = SearchSettings.for_width(768)
    assert (base.learning_rate, base.student_learning_rate) == (5e-5, 1e-4)
    assert (base.probe_learning_rate, base.folded_learning_rate) == (1.5e-4, 2.5e-4)
    assert base.epochs == SearchSettings().epochs
    # Records of the default trunk and of narrower ones are found by their recipes.
    assert SearchSettings.for_width(384) == SearchSettings.for_width(32) == SearchSettings()
