"""The plan that is carried out: the cheapest that keeps enough, or the best that costs little enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from onetrunk.distill.frontier import frontier
from onetrunk.distill.options import Option, by_task
from onetrunk.distill.plan import Plan
from onetrunk.distill.rates import Rates
from onetrunk.protocol.errors import UserError

Objective = Literal["cost", "quality"]

# Shares are quotients of decimal fractions: 0.97 * 100 must not miss 97 by a rounding.
_ROUNDING = 1e-9


def choose(
    options: Iterable[Option],
    rates: Rates,
    *,
    floor_task: float = 0.97,
    floor_average: float = 0.996,
    most_share: float | None = None,
    objective: Objective = "cost",
) -> Plan:
    """The plan to carry out.

    A floor that cannot be met is lowered as little as can be: a task whose best student falls short takes that one,
    and where the share allows no plan at a task floor, the greatest floor that it allows takes its place. Of the plans
    that are left, the cheapest that meets the average floor is chosen, and where none does, the best.

    Args:
        options: of all tasks.
        rates: what the parts cost, from ``CostTable.rates``.
        floor_task: least share of full fine-tuning's score that every task keeps.
        floor_average: the same for the mean over the tasks.
        most_share: greatest cost, as a share of as many single-task models; None: any. Where no plan is that cheap,
            the cheapest is given.
        objective: ``cost``: the least cost that meets the floors; ``quality``: the best average.

    Returns:
        The plan. Its ``meets_floor`` is False where it misses a floor or the share, and its ``note`` says by how much.

    Raises:
        UserError: as ``frontier`` does, or a floor or the share is not above 0.
    """
    for name, value in (("floor_task", floor_task), ("floor_average", floor_average), ("most_share", most_share)):
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: give a share above 0, as 0.97 for 97%")
    options = list(options)
    best = {task: max(option.retention for option in group) for task, group in by_task(options).items()}

    def plans(floor: float) -> list[Plan]:
        kept = [option for option in options if option.retention >= min(floor, best[option.task]) - _ROUNDING]
        return [plan for plan in frontier(kept, rates) if most_share is None or plan.share <= most_share + _ROUNDING]

    levels = sorted({option.retention for option in options if option.retention < floor_task}, reverse=True)
    found = _first([floor_task, *levels], plans)
    if found:
        enough = [plan for plan in found if plan.average >= floor_average - _ROUNDING]
        plan = enough[0] if enough and objective == "cost" else found[-1]
    else:
        plan = frontier(options, rates)[0]
    note = "; ".join(_shortfalls(plan, best, floor_task, floor_average, most_share))
    return dataclasses.replace(plan, meets_floor=not note, note=note)


def _first(floors: list[float], plans: Callable[[float], list[Plan]]) -> list[Plan]:
    """The plans at the greatest floor that has any; a lower floor never has fewer. Floors come greatest first."""
    if found := plans(floors[0]):
        return found
    low, high = 1, len(floors)
    while low < high:
        middle = (low + high) // 2
        if at_middle := plans(floors[middle]):
            found, high = at_middle, middle
        else:
            low = middle + 1
    return found


def _shortfalls(
    plan: Plan, best: dict[str, float], floor_task: float, floor_average: float, most_share: float | None
) -> list[str]:
    # Each test is written so that NaN falls short.
    notes = []
    for option in plan.options:
        if not option.retention >= floor_task - _ROUNDING:
            at_best = option.retention >= best[option.task] - _ROUNDING
            why = "no student of it keeps more" if at_best else f"its best student keeps {best[option.task]:.1%}"
            notes.append(f"{option.task} keeps {_short(option.retention, floor_task)} ({why})")
    if not plan.average >= floor_average - _ROUNDING:
        notes.append(f"the average keeps {_short(plan.average, floor_average)}")
    if most_share is not None and not plan.share <= most_share + _ROUNDING:
        notes.append(
            f"the cheapest plan costs {plan.share:.1%} of single-task models, above the {most_share:.1%} allowed"
        )
    return notes


def _short(found: float, floor: float) -> str:
    return f"{found:.2%} of full fine-tuning, {100 * (floor - found):.2f} points under the floor of {floor:.1%}"
