"""The paper's selection, by hand."""

import pytest

from benchmarks.study.paper_plans import select_mixed, select_plans, select_uniform
from onetrunk.distill.costs import PartCosts
from onetrunk.distill.plan import Option
from onetrunk.protocol.errors import UserError

RATES = PartCosts((1.0, 11.0, 21.0, 31.0, 41.0), 9.0, 0.5, 0.25, 42.0, 33.0)


def option(task, tap, layers, score, query="cls"):
    return Option(task=task, tap=tap, layers=layers, query=query, score=score, full=0.9)


# Gains of a: 2 points, 1 point; of b: 0.5, then 4, which is never seen: the first one stops it.
OPTIONS = [
    option("a", 1, 1, 0.70),
    option("a", 1, 2, 0.72),
    option("a", 1, 3, 0.73),
    option("a", 2, 1, 0.99),
    option("b", 0, 1, 0.800),
    option("b", 0, 2, 0.805),
    option("b", 0, 3, 0.845),
    option("b", 0, 1, 0.790, query="mean"),
]
TAPS = {"a": 1, "b": 0}


@pytest.mark.parametrize(("points", "layers"), [(1, [3, 1]), (2, [2, 1]), (3, [1, 1]), (0.5, [3, 3])])
def test_layers_are_added_while_they_gain_enough(points, layers):
    chosen = select_mixed(OPTIONS, TAPS, points)
    assert [each.layers for each in chosen] == layers
    assert [each.tap for each in chosen] == [1, 0]


def test_of_two_students_of_the_same_depth_the_better_counts():
    assert select_mixed(OPTIONS, TAPS, 3)[1].query == "cls"


def test_a_missing_depth_ends_the_ladder():
    assert [each.layers for each in select_mixed([option("a", 1, 1, 0.5), option("a", 1, 3, 0.9)], TAPS, 1)] == [1]


def test_uniform_takes_the_next_smaller_where_a_depth_is_missing():
    options = [option("a", 1, 1, 0.7), option("a", 1, 2, 0.7), option("b", 0, 3, 0.8)]
    assert [each.layers for each in select_uniform(options, TAPS, 3)] == [2, 3]
    assert [each.layers for each in select_uniform(options, TAPS, 1)] == [1, 3]


def test_all_configurations_as_plans():
    plans = select_plans(OPTIONS, RATES, TAPS)
    assert list(plans) == ["KD-1", "KD-2", "KD-3", "Mixed-1", "Mixed-2", "Mixed-3"]
    # Trunk to tap 1, and the embeddings again; one folded layer each; two segments and two heads.
    assert plans["KD-1"].cost.total_ms == pytest.approx(12 + 1 + 1)
    assert plans["Mixed-2"].cost.total_ms == pytest.approx(12 + 1 + 9 + 1)
    assert plans["Mixed-2"].average == pytest.approx((0.72 + 0.80) / 1.8)


def test_a_task_without_a_tap():
    with pytest.raises(UserError, match="task b has no tap to select on; taps are given for: a"):
        select_mixed(OPTIONS, {"a": 1}, 1)


def test_a_tap_without_a_student():
    with pytest.raises(UserError, match="task a has no student on tap 3; it has some on 1, 2"):
        select_uniform(OPTIONS, {"a": 3, "b": 0}, 1)
