"""The paper's selection, to compare with: per task by marginal gain, and the same number of layers for all tasks.

Source: "A Flexible Multi-Task Model for BERT Serving", arXiv 2107.05377, the configurations Mixed and KD-l.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onetrunk.distill.options import Option, by_task
from onetrunk.distill.plan import Plan
from onetrunk.distill.rates import Rates
from onetrunk.protocol.errors import UserError

_ROUNDING = 1e-9


def mixed(options: Iterable[Option], taps: Mapping[str, int], points: float) -> list[Option]:
    """Per task, from one layer up, another layer for as long as it gains enough.

    Args:
        options: of all tasks.
        taps: task -> its tap, which the paper chooses beforehand, by the teachers.
        points: the least gain that pays for a layer, in points (hundredths of a score).

    Raises:
        UserError: a task has no tap, or no student there.
    """
    chosen = []
    for ladder in _ladders(options, taps).values():
        layers = min(ladder)
        while layers + 1 in ladder and _gain(ladder[layers], ladder[layers + 1]) >= points - _ROUNDING:
            layers += 1
        chosen.append(ladder[layers])
    return chosen


def uniform(options: Iterable[Option], taps: Mapping[str, int], layers: int) -> list[Option]:
    """Per task the student of this many layers; where there is none, the deepest that has fewer, or else the least.

    Args:
        options: of all tasks.
        taps: task -> its tap.
        layers: how many.

    Raises:
        UserError: a task has no tap, or no student there.
    """
    chosen = []
    for ladder in _ladders(options, taps).values():
        fewer = [count for count in ladder if count <= layers]
        chosen.append(ladder[max(fewer) if fewer else min(ladder)])
    return chosen


def mixed_plans(
    options: Sequence[Option],
    rates: Rates,
    taps: Mapping[str, int],
    *,
    points: Sequence[float] = (1, 2, 3),
    layers: Sequence[int] = (1, 2, 3),
) -> dict[str, Plan]:
    """The paper's configurations as plans, by name: ``KD-1``, ``KD-2``, ``KD-3``, ``Mixed-1``, ...

    Raises:
        UserError: as ``mixed`` and ``Plan.of`` do.
    """
    plans = {f"KD-{count}": Plan.of(uniform(options, taps, count), rates) for count in layers}
    return plans | {f"Mixed-{gain:g}": Plan.of(mixed(options, taps, gain), rates) for gain in points}


def _ladders(options: Iterable[Option], taps: Mapping[str, int]) -> dict[str, dict[int, Option]]:
    """Task -> number of layers -> its best student of that many, on the task's tap."""
    ladders: dict[str, dict[int, Option]] = {}
    for task, group in by_task(list(options)).items():
        if task not in taps:
            raise UserError(f"task {task} has no tap to select on; taps are given for: {', '.join(taps) or 'none'}")
        ladder: dict[int, Option] = {}
        for option in group:
            held = ladder.get(option.layers)
            if option.tap == taps[task] and (held is None or option.score > held.score):
                ladder[option.layers] = option
        if not ladder:
            known = ", ".join(str(tap) for tap in sorted({option.tap for option in group}))
            raise UserError(f"task {task} has no student on tap {taps[task]}; it has some on {known}")
        ladders[task] = ladder
    return ladders


def _gain(shorter: Option, longer: Option) -> float:
    return 100 * (longer.score - shorter.score)
