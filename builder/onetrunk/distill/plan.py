"""A plan: one option for each task, what all of them cost and what they keep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from onetrunk.distill.options import Option
from onetrunk.distill.rates import Cost, Rates
from onetrunk.protocol.errors import UserError


@dataclass(frozen=True)
class Plan:
    """One head for each task.

    Attributes:
        options: one a task, by the task's name.
        cost: of all of them together, for one text.
        meets_floor: whether it keeps what was asked for.
        note: where it does not, which task falls short and by how much.
    """

    options: tuple[Option, ...]
    cost: Cost
    meets_floor: bool = True
    note: str = ""

    @classmethod
    def of(cls, options: Iterable[Option], rates: Rates) -> Plan:
        """The plan of these options. Raises UserError where a task has two, or a head does not fit the trunk."""
        chosen = tuple(sorted(options, key=lambda option: option.task))
        for first, second in pairwise(chosen):
            if first.task == second.task:
                raise UserError(f"task {first.task} is in the plan twice; a plan has one head a task")
        return cls(chosen, rates.cost(chosen))

    @property
    def average(self) -> float:
        """What it keeps of full fine-tuning on average: mean score over mean score, as a share."""
        kept = math.fsum(option.score for option in self.options)
        return kept / math.fsum(option.full for option in self.options)

    @property
    def worst(self) -> Option:
        """The option that keeps least."""
        return min(self.options, key=lambda option: option.retention)

    @property
    def taps(self) -> tuple[int, ...]:
        """The taps in use, lowest first."""
        return tuple(sorted({option.tap for option in self.options}))

    @property
    def share(self) -> float:
        """Its cost as a share of as many single-task models of the usual kind."""
        return self.cost.share
