"""The whole frontier of quality against cost over all combinations of options, exactly.

What a combination costs depends on three things only: the taps in use, the number of heads, and the number of whole
head layers in all. So for every set of taps that may be used, a table over tasks gives the best sum of scores for each
number of whole layers, and the best of all sets is the frontier. A set of which not all taps end up in use is charged
too much there, and rightly where that smaller set has its turn, so nothing is lost and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from onetrunk.distill.options import Option, by_task
from onetrunk.distill.plan import Plan
from onetrunk.distill.rates import Rates
from onetrunk.protocol.errors import UserError

# 2 to the power of this many sets are gone through: a second or two.
_MOST_TAPS = 13


class _State(NamedTuple):
    """The best so far for one number of whole layers. Options hang on each other, so that none is ever copied."""

    score: float
    option: Option | None
    before: _State | None


def frontier(options: Iterable[Option], rates: Rates) -> list[Plan]:
    """Every plan that no other beats in both cost and average retention, cheapest first.

    Args:
        options: of all tasks; each plan takes one of each task.
        rates: what the parts cost, from ``CostTable.rates``.

    Raises:
        UserError: there are no options, options of a task disagree about full fine-tuning, one does not fit the trunk,
            or they stand on too many taps.
    """
    tasks = by_task(list(options))
    for group in tasks.values():
        for option in group:
            rates.check(option)
    found: dict[tuple[Option, ...], Plan] = {}
    for taps in _tap_sets(tasks):
        for chosen in _best_by_layers(list(tasks.values()), taps):
            if chosen not in found:
                found[chosen] = Plan.of(chosen, rates)
    return undominated(found.values())


def undominated(plans: Iterable[Plan]) -> list[Plan]:
    """Those of the plans that no other beats in both cost and average retention, cheapest first."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.cost.total_ms, -plan.average, plan.options)):
        if not kept or plan.average > kept[-1].average:
            kept.append(plan)
    return kept


def _tap_sets(tasks: dict[str, list[Option]]) -> Iterator[frozenset[int]]:
    taps = sorted({option.tap for group in tasks.values() for option in group})
    if len(taps) > _MOST_TAPS:
        raise UserError(
            f"students stand on {len(taps)} taps, and all sets of at most {_MOST_TAPS} can be gone through: "
            "leave out taps on which every task does worse than on others"
        )
    for count in range(1, len(taps) + 1):
        for chosen in combinations(taps, count):
            yield frozenset(chosen)


def _best_by_layers(groups: Collection[list[Option]], taps: frozenset[int]) -> Iterator[tuple[Option, ...]]:
    """For each number of whole layers that pays, the options with the best sum of scores, all on these taps."""
    table: dict[int, _State] = {0: _State(0.0, None, None)}
    for group in groups:
        best: dict[int, Option] = {}
        for option in group:
            held = best.get(option.whole_layers)
            if option.tap in taps and (held is None or option.score > held.score):
                best[option.whole_layers] = option
        grown: dict[int, _State] = {}
        for whole, state in table.items():
            for layers, option in best.items():
                score, total = state.score + option.score, whole + layers
                if total not in grown or score > grown[total].score:
                    grown[total] = _State(score, option, state)
        table = _paying(grown)
    for state in table.values():
        yield tuple(_options(state))


def _paying(table: dict[int, _State]) -> dict[int, _State]:
    """Without the numbers of layers that score no better than a smaller number."""
    kept: dict[int, _State] = {}
    best = float("-inf")
    for whole in sorted(table):
        if table[whole].score > best:
            kept[whole], best = table[whole], table[whole].score
    return kept


def _options(state: _State | None) -> Iterator[Option]:
    while state is not None and state.option is not None:
        yield state.option
        state = state.before
