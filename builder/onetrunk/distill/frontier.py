"""The exact frontier of quality against cost over all combinations of options, and the choice of a plan on it.

The cost of a combination depends on three things only: the taps and limbs in use, the tasks, and the total number of
whole head layers, each counted as often as its task is asked. So for every set of allowed places (a tap, or the top of
a limb), a table over tasks holds the best sum of scores for each number of whole layers, and the best of all sets form
the frontier. A combination that does not use all allowed places is charged too much there, and correctly where its
smaller set has its turn, so nothing is lost and nothing is approximated.

Of very many places, as on a trunk of 24 layers, not all sets are tried: of the taps, only all up to some depth. The
trunk runs that far in any case, and only the step from one segment to the next makes fewer taps cheaper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from onetrunk.distill.costs import PartCosts
from onetrunk.distill.plan import Option, Plan, by_task
from onetrunk.protocol.errors import UserError

Objective = Literal["cost", "quality"]

# 2 to the power of this many sets of places are tried, which takes a second or two.
_MOST_PLACES = 13
_MOST_LIMBS = 8

# A tap, and the limb whose top it is; empty for a tap of the trunk.
_Place = tuple[int, str]

_HUNDREDTHS = 100

# Shares are quotients of decimal fractions: 0.97 * 100 must not miss 97 by a rounding error.
_TOLERANCE = 1e-9


def choose(
    options: Iterable[Option],
    costs: PartCosts,
    *,
    floor_task: float = 0.97,
    floor_average: float = 0.996,
    most_share: float | None = None,
    objective: Objective = "cost",
) -> Plan:
    """Choose a plan: by default the cheapest that meets the floors.

    A floor that cannot be met is lowered as little as possible: a task whose best student falls short gets that one,
    and where no plan within the cost limit meets the task floor, the greatest floor that one does meet takes its
    place. Of the remaining plans, the cheapest that meets the average floor is chosen, and where none does, the best.

    Args:
        options: The options of all tasks.
        costs: The costs of the parts, from ``CostTable.per_text`` or ``by_traffic``.
        floor_task: The least retention of every task.
        floor_average: The least average retention.
        most_share: The greatest cost, as a share of as many single-task models; None sets no limit. Where no plan is
            that cheap, the cheapest is returned.
        objective: ``cost`` minimises the cost above the floors, ``quality`` maximises the average retention.

    Returns:
        The plan. Where it misses a floor or the limit, ``meets_floor`` is False and ``note`` says by how much.

    Raises:
        UserError: A floor or the limit is not above 0, or ``frontier`` refuses the options.
    """
    for name, value in (("floor_task", floor_task), ("floor_average", floor_average), ("most_share", most_share)):
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: give a share above 0, as 0.97 for 97%")
    options = list(options)
    best = {task: max(option.retention for option in group) for task, group in by_task(options).items()}

    def plans_above(floor: float) -> list[Plan]:
        allowed = [option for option in options if option.retention >= min(floor, best[option.task]) - _TOLERANCE]
        return [
            plan for plan in frontier(allowed, costs) if most_share is None or plan.share <= most_share + _TOLERANCE
        ]

    lower = sorted({option.retention for option in options if not option.retention >= floor_task}, reverse=True)
    found = _at_greatest_floor([floor_task, *lower], plans_above)
    if found:
        enough = [plan for plan in found if plan.average >= floor_average - _TOLERANCE]
        plan = enough[0] if enough and objective == "cost" else found[-1]
    else:
        plan = frontier(options, costs)[0]
    note = "; ".join(_shortfalls(plan, best, floor_task=floor_task, floor_average=floor_average, most_share=most_share))
    return dataclasses.replace(plan, meets_floor=not note, note=note)


def frontier(options: Iterable[Option], costs: PartCosts) -> list[Plan]:
    """Return every plan that no other beats in both cost and average retention, cheapest first.

    Args:
        options: The options of all tasks; each plan takes one of each task.
        costs: The costs of the parts, from ``CostTable.per_text``.

    Raises:
        UserError: There are no options, a task's options disagree about full fine-tuning, one does not fit the trunk,
            or they use too many different taps and limbs.
    """
    tasks = by_task(options)
    for group in tasks.values():
        for option in group:
            costs.check(option)
    found: dict[tuple[Option, ...], Plan] = {}
    for places in _sets_of_places(tasks):
        for chosen in _best_by_layers(tasks, places, costs.asked):
            if chosen not in found:
                found[chosen] = Plan.of(chosen, costs)
    return undominated(found.values())


def undominated(plans: Iterable[Plan]) -> list[Plan]:
    """Return those of the plans that no other beats in both cost and average retention, cheapest first."""
    best: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.cost.total_ms, -plan.average, plan.options)):
        if not best or plan.average > best[-1].average:
            best.append(plan)
    return best


class _State(NamedTuple):
    """The best selection so far for one number of whole layers, as a linked list so that none is ever copied."""

    score: float
    option: Option | None
    previous: _State | None


def _sets_of_places(tasks: Mapping[str, Sequence[Option]]) -> Iterator[frozenset[_Place]]:
    places = sorted({(option.tap, option.limb) for group in tasks.values() for option in group})
    if len(places) <= _MOST_PLACES:
        for count in range(1, len(places) + 1):
            for chosen in combinations(places, count):
                yield frozenset(chosen)
        return
    taps, limbs = ([place for place in places if bool(place[1]) is on_limb] for on_limb in (False, True))
    if len(limbs) > _MOST_LIMBS:
        raise UserError(
            f"students use {len(taps)} taps and {len(limbs)} limbs, and beside so many taps all sets of at most "
            f"{_MOST_LIMBS} limbs can be tried: search with fewer limbs"
        )
    for count in range(len(limbs) + 1):
        for on_limbs in combinations(limbs, count):
            for most in range(len(taps) + 1):
                yield frozenset((*taps[:most], *on_limbs))


def _best_by_layers(
    tasks: Mapping[str, Sequence[Option]], places: frozenset[_Place], asked: Mapping[str, float]
) -> Iterator[tuple[Option, ...]]:
    """Yield, for each number of whole layers that pays, the options on these places with the best sum of scores."""
    table: dict[int, _State] = {0: _State(0.0, None, None)}
    for task, group in tasks.items():
        # Shares are in hundredths: so counted, layers are whole numbers, and sums of them are few.
        weight = round(_HUNDREDTHS * asked.get(task, 1.0))
        best: dict[int, Option] = {}
        for option in group:
            known = best.get(option.whole_layers)
            if (option.tap, option.limb) in places and (known is None or option.score > known.score):
                best[option.whole_layers] = option
        extended: dict[int, _State] = {}
        for whole, state in table.items():
            for layers, option in best.items():
                score, total = state.score + option.score, whole + weight * layers
                if total not in extended or score > extended[total].score:
                    extended[total] = _State(score, option, state)
        table = _without_wasted_layers(extended)
    for state in table.values():
        yield tuple(_options_of(state))


def _without_wasted_layers(table: Mapping[int, _State]) -> dict[int, _State]:
    """Drop the numbers of layers that score no better than a smaller number."""
    useful: dict[int, _State] = {}
    best = float("-inf")
    for whole in sorted(table):
        if table[whole].score > best:
            useful[whole], best = table[whole], table[whole].score
    return useful


def _options_of(state: _State | None) -> Iterator[Option]:
    while state is not None and state.option is not None:
        yield state.option
        state = state.previous


def _at_greatest_floor(floors: Sequence[float], plans_above: Callable[[float], list[Plan]]) -> list[Plan]:
    """Return the plans at the greatest floor that allows any, by bisection: a lower floor never allows fewer.

    Args:
        floors: The floors, greatest first.
        plans_above: Returns the plans that a floor allows.
    """
    if found := plans_above(floors[0]):
        return found
    low, high = 1, len(floors)
    while low < high:
        middle = (low + high) // 2
        if at_middle := plans_above(floors[middle]):
            found, high = at_middle, middle
        else:
            low = middle + 1
    return found


def _shortfalls(
    plan: Plan, best: Mapping[str, float], *, floor_task: float, floor_average: float, most_share: float | None
) -> Iterator[str]:
    # Each test is written so that NaN falls short.
    for option in plan.options:
        if not option.retention >= floor_task - _TOLERANCE:
            at_best = option.retention >= best[option.task] - _TOLERANCE
            why = "no student of it keeps more" if at_best else f"its best student keeps {best[option.task]:.1%}"
            yield f"{option.task} keeps {_shortfall(option.retention, floor_task)} ({why})"
    if not plan.average >= floor_average - _TOLERANCE:
        yield f"the average keeps {_shortfall(plan.average, floor_average)}"
    if most_share is not None and not plan.share <= most_share + _TOLERANCE:
        yield f"the cheapest plan costs {plan.share:.1%} of single-task models, above the {most_share:.1%} allowed"


def _shortfall(retention: float, floor: float) -> str:
    return f"{retention:.2%} of full fine-tuning, {100 * (floor - retention):.2f} points under the floor of {floor:.1%}"
