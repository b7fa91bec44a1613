"""The frontier against brute force, and the choice from it."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.distill.costs import PartCosts
from onetrunk.distill.frontier import choose, frontier
from onetrunk.distill.plan import Option, Plan
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import LimbId

RATES = PartCosts(
    trunk_ms=(1.0, 11.0, 21.0, 31.0, 41.0),
    layer_ms=9.0,
    folded_ms=0.5,
    step_ms=0.25,
    single_ms=42.0,
    folded_single_ms=33.0,
)
TINY = 1e-9


LIMBS = ("low-0+1@000000000000", "pairs-1+1@000000000000", "other-1+1@111111111111")


def option(task, tap, layers, score, full=0.8, limb=""):
    return Option(task=task, tap=tap, layers=layers, query="cls", score=score, full=full, limb=limb)


@st.composite
def instances(draw):
    """Up to four tasks with up to five options each, on a trunk of four layers with costs of any size."""
    cost = st.floats(0, 10)
    layers = draw(st.lists(cost, min_size=4, max_size=4))
    rates = PartCosts(
        trunk_ms=tuple(itertools.accumulate(layers, initial=draw(cost))),
        layer_ms=draw(cost),
        folded_ms=draw(cost),
        step_ms=draw(cost),
        single_ms=draw(st.floats(1, 60)),
        folded_single_ms=draw(st.floats(1, 60)),
    )
    options = []
    for task in "abcd"[: draw(st.integers(1, 4))]:
        if draw(st.booleans()):
            rates.asked[task] = draw(st.integers(1, 100)) / 100
        full = draw(st.integers(1, 100)) / 100
        for _ in range(draw(st.integers(1, 5))):
            limb = draw(st.sampled_from(["", "", *LIMBS]))
            tap = LimbId.parse(limb).stop if limb else draw(st.integers(0, 3))
            depth = draw(st.integers(1, 4 - tap))
            options.append(option(task, tap, depth, draw(st.integers(-20, 100)) / 100, full, limb))
    return options, rates


def combinations(options, rates):
    groups = {}
    for each in options:
        groups.setdefault(each.task, []).append(each)
    return [Plan.of(chosen, rates) for chosen in itertools.product(*groups.values())]


@settings(deadline=None, max_examples=150)
@given(instances())
def test_frontier_is_that_of_brute_force(instance):
    options, rates = instance
    plans, every = frontier(options, rates), combinations(options, rates)
    assert all(any(set(plan.options) == set(other.options) for other in every) for plan in plans)
    for first, second in itertools.pairwise(plans):
        assert first.cost.total_ms < second.cost.total_ms
        assert first.average < second.average
    for other in every:
        assert any(
            plan.cost.total_ms <= other.cost.total_ms + TINY and plan.average >= other.average - TINY for plan in plans
        )


@settings(deadline=None, max_examples=150)
@given(
    instances(),
    st.floats(0.5, 1.2),
    st.floats(0.5, 1.2),
    st.none() | st.floats(0.05, 1.5),
    st.sampled_from(["cost", "quality"]),
)
def test_choice_is_that_of_brute_force(instance, floor_task, floor_average, most_share, objective):
    options, rates = instance
    plan = choose(
        options,
        rates,
        floor_task=floor_task,
        floor_average=floor_average,
        most_share=most_share,
        objective=objective,
    )
    every = combinations(options, rates)
    cheap = [other for other in every if most_share is None or other.share <= most_share + TINY]
    if not cheap:
        assert not plan.meets_floor
        assert plan.cost.total_ms <= min(other.cost.total_ms for other in every) + TINY
        return
    fine = [other for other in cheap if other.worst.retention >= floor_task - TINY]
    if not fine:
        # Then no other plan that is as cheap has a better worst task.
        assert not plan.meets_floor
        assert plan.share <= (most_share or float("inf")) + TINY
        assert plan.worst.retention >= max(other.worst.retention for other in cheap) - TINY
        return
    enough = [other for other in fine if other.average >= floor_average - TINY]
    assert plan.meets_floor == bool(enough)
    assert plan.worst.retention >= floor_task - TINY
    assert plan.share <= (most_share or float("inf")) + TINY
    if enough and objective == "cost":
        assert plan.average >= floor_average - 2 * TINY
        assert plan.cost.total_ms == pytest.approx(min(other.cost.total_ms for other in enough), abs=TINY)
    else:
        assert plan.average == pytest.approx(max(other.average for other in fine), abs=TINY)


def test_a_deep_tap_that_is_paid_once_draws_other_tasks_to_it():
    """Alone, `b` would stand on tap 1 with two layers; beside `a`, tap 3 is there already and one layer is enough."""
    options = [option("a", 3, 1, 0.8), option("b", 1, 2, 0.8), option("b", 3, 1, 0.8)]
    alone = choose([each for each in options if each.task == "b"], RATES)
    assert [(each.tap, each.layers) for each in alone.options] == [(1, 2)]
    both = choose(options, RATES)
    assert [(each.task, each.tap, each.layers) for each in both.options] == [("a", 3, 1), ("b", 3, 1)]
    assert both.cost.total_ms == pytest.approx(31 + 2 * 0.5 + 3 * 0.25)
    assert both.meets_floor
    assert both.note == ""


def test_a_limb_that_is_paid_once_pays_with_enough_tasks():
    # A layer of 9 and a step of 0.25, in place of a layer of 9 for each head; heads on the limb are a little better.
    alone = [option(task, 2, 2, 0.80) for task in "ab"]
    on_limb = [option(task, 3, 1, 0.81, limb="pairs-2+1@000000000000") for task in "ab"]
    plans = frontier([*alone, *on_limb], RATES)
    assert [plan.limbs for plan in plans] == [("pairs-2+1@000000000000",)]
    assert plans[0].taps == (2,)
    assert plans[0].cost.limbs_ms == 9.0
    # The trunk to tap 2, the limb, two heads, and a step for each of these.
    assert plans[0].cost.total_ms == pytest.approx(21.0 + 9.0 + 2 * 0.5 + 4 * 0.25)
    one = frontier([alone[0], on_limb[0]], RATES)
    assert [plan.limbs for plan in one] == [(), ("pairs-2+1@000000000000",)]


def test_least_cost_that_meets_both_floors():
    options = [option("a", 1, layers, score) for layers, score in ((1, 0.76), (2, 0.784), (3, 0.785))]
    options += [option("b", 1, layers, score) for layers, score in ((1, 0.78), (2, 0.79))]
    plan = choose(options, RATES, floor_task=0.97, floor_average=0.98)
    # a on one layer keeps 95%; (0.784 + 0.78) / 1.6 is 97.75%, (0.785 + 0.78) / 1.6 97.8%, (0.784 + 0.79) / 1.6 98.4%.
    assert [each.layers for each in plan.options] == [2, 2]
    best = choose(options, RATES, floor_task=0.97, floor_average=0.98, objective="quality")
    assert [each.layers for each in best.options] == [3, 2]


def test_a_share_caps_the_best_average():
    options = [option("a", 1, layers, score) for layers, score in ((1, 0.78), (2, 0.80), (3, 0.82))]
    one, two, three = (RATES.cost([option("a", 1, layers, 0.8)]).share for layers in (1, 2, 3))
    plan = choose(options, RATES, floor_average=0.5, most_share=(two + three) / 2, objective="quality")
    assert plan.options[0].layers == 2
    tight = choose(options, RATES, most_share=one / 2)
    assert not tight.meets_floor
    assert tight.options[0].layers == 1
    assert "the cheapest plan costs 28.6% of single-task models, above the 14.3% allowed" in tight.note


def test_a_task_that_falls_short_is_named_and_the_others_keep_their_floors():
    options = [option("a", 1, 1, 0.72), option("a", 2, 1, 0.60), option("b", 1, 1, 0.70), option("b", 1, 2, 0.84)]
    plan = choose(options, RATES, floor_task=0.97, floor_average=0.9)
    assert [(each.tap, each.layers) for each in plan.options] == [(1, 1), (1, 2)]
    assert not plan.meets_floor
    assert plan.note == (
        "a keeps 90.00% of full fine-tuning, 7.00 points under the floor of 97.0% (no student of it keeps more)"
    )


def test_an_average_that_falls_short_gives_the_best_there_is():
    options = [option("a", 1, 1, 0.78), option("a", 1, 2, 0.79)]
    plan = choose(options, RATES)
    assert plan.options[0].layers == 2
    assert plan.note == "the average keeps 98.75% of full fine-tuning, 0.85 points under the floor of 99.6%"


def test_a_floor_that_is_met_exactly_is_met():
    assert choose([option("a", 1, 1, 0.776)], RATES, floor_average=0.97).meets_floor


def test_average_is_mean_score_over_mean_score():
    plan = Plan.of([option("a", 1, 1, 0.3, full=0.6), option("b", 1, 1, 0.9, full=0.9)], RATES)
    assert plan.average == pytest.approx(1.2 / 1.5)
    assert (plan.worst.task, plan.taps) == ("a", (1,))


def test_no_options():
    with pytest.raises(UserError, match="no trained student"):
        frontier([], RATES)


def test_two_references_for_one_task():
    with pytest.raises(UserError, match=r"task a: full fine-tuning has the scores \[0.7, 0.8\]"):
        frontier([option("a", 1, 1, 0.7), option("a", 1, 2, 0.7, full=0.7)], RATES)


def test_a_task_twice_in_a_plan():
    with pytest.raises(UserError, match="task a is in the plan twice"):
        Plan.of([option("a", 1, 1, 0.7), option("a", 2, 1, 0.7)], RATES)


@pytest.mark.parametrize(
    ("score", "full", "message"),
    [(82.5, 0.8, "as 0.825 for 82.5"), (float("nan"), 0.8, "score nan"), (0.1, 0.0, "above 0"), (0.1, -0.1, "above 0")],
)
def test_scores_are_shares(score, full, message):
    with pytest.raises(UserError, match=message):
        option("a", 1, 1, score, full)


def test_a_floor_in_points_is_refused_where_it_is_not_above_0():
    with pytest.raises(UserError, match="floor_task is 0"):
        choose([option("a", 1, 1, 0.7)], RATES, floor_task=0)


def test_eight_tasks_on_twelve_layers_take_seconds():
    rates = PartCosts(tuple(float(tap) for tap in range(13)), 1.0, 0.1, 0.05, 12.1, 11.2)
    options = [
        option(task, tap, layers, 0.5 + 0.01 * ((7 * tap + 3 * layers + index) % 23))
        for index, task in enumerate("abcdefgh")
        for tap in range(12)
        for layers in range(1, min(4, 12 - tap) + 1)
    ]
    assert len(frontier(options, rates)) > 3


def test_a_plan_whose_cost_is_nan_misses_the_share():
    unmeasured = dataclasses.replace(RATES, folded_ms=math.nan)
    plan = choose([option("a", 1, 1, 0.8)], unmeasured, most_share=0.9)
    assert math.isnan(plan.share)
    assert not plan.meets_floor


def test_on_a_trunk_of_many_layers_taps_are_tried_up_to_a_depth():
    rates = dataclasses.replace(RATES, trunk_ms=tuple(float(tap) for tap in range(25)), step_ms=0.01)
    tops = (3, 6, 9, 12, 15, 18, 21, 22)
    options = [option(f"t{top}", top - less, 1, 0.8 - 0.01 * less) for top in tops for less in range(3)]
    plan = choose(options, rates, floor_average=1.0)
    assert plan.meets_floor
    assert max(plan.taps) == 22
    cheapest = choose(options, rates, floor_task=0.9, floor_average=0.9)
    assert max(cheapest.taps) == 20
    limbs = [option("t3", 2, 1, 0.7, limb=f"l{number}-1+1@000000000000") for number in range(9)]
    with pytest.raises(UserError, match="22 taps and 9 limbs, and beside so many taps all sets of at most 8 limbs"):
        frontier(options + limbs, rates)
