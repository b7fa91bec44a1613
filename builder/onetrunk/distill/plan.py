"""A plan: one head for each task, what they retain together and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from onetrunk.distill.costs import Cost, PartCosts, trunk_tap
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import LimbId


@dataclass(frozen=True, order=True)
class Option:
    """A trained student that could become a task's head.

    Attributes:
        task: The task's name.
        tap: The tap that it reads.
        layers: The number of its layers, the folded one included.
        query: The query of its folded layer.
        score: Its score on the dev data, as a share (0.825, not 82.5), mean over seeds where there are several.
        full: The score of full fine-tuning of the same encoder on the same task, in the same metric.
        run: The key of its run record.
        by_token: Whether it answers per token; None is no.
        limb: The identity of the limb that it stands on; empty for the trunk itself.
    """

    task: str
    tap: int
    layers: int
    query: Query
    score: float
    full: float
    run: str = ""
    by_token: bool | None = None
    limb: str = ""

    def __post_init__(self) -> None:
        where = f"option {self.run or self.task}"
        if self.tap < 0 or self.layers < 1:
            raise UserError(f"{where}: tap {self.tap} and {self.layers} layers: give a tap from 0 and layers from 1")
        if not (math.isfinite(self.score) and abs(self.score) <= 1):
            raise UserError(f"{where}: score {self.score}: give it as a share, as 0.825 for 82.5")
        # A correlation may be negative; where full fine-tuning's is, there is nothing to retain a share of.
        if not 0 < self.full <= 1:
            raise UserError(
                f"{where}: full fine-tuning's score is {self.full}: a share from 0 to 1, above 0, is needed"
            )

    @property
    def whole_layers(self) -> int:
        """The number of layers that run whole."""
        return self.layers if self.by_token else self.layers - 1

    @property
    def where(self) -> str:
        """What it stands on, in words."""
        return f"limb {LimbId.parse(self.limb).name}" if self.limb else f"tap {self.tap}"

    @property
    def retention(self) -> float:
        """The share of full fine-tuning's score that it retains; above 1 where it is better."""
        return self.score / self.full


def by_task(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Group options by task.

    Raises:
        UserError: There are none, or a task's options disagree about full fine-tuning's score.
    """
    tasks: dict[str, list[Option]] = {}
    for option in sorted(options):
        tasks.setdefault(option.task, []).append(option)
    if not tasks:
        raise UserError("no trained student to choose from: train some with search-heads run first")
    for task, group in tasks.items():
        if len(found := sorted({option.full for option in group})) > 1:
            raise UserError(
                f"task {task}: full fine-tuning has the scores {found} in different options; all need the same one"
            )
    return tasks


@dataclass(frozen=True)
class Plan:
    """One head for each task.

    Attributes:
        options: The heads, ordered by task.
        cost: Their cost together, for one text.
        meets_floor: Whether the floors and the cost limit that were asked for are met.
        note: Where they are not, which task falls short and by how much.
    """

    options: tuple[Option, ...]
    cost: Cost
    meets_floor: bool = True
    note: str = ""

    @classmethod
    def of(cls, options: Iterable[Option], costs: PartCosts) -> Plan:
        """Make a plan of these options.

        Raises:
            UserError: A task has two options, or a head does not fit the trunk.
        """
        chosen = tuple(sorted(options, key=lambda option: option.task))
        for first, second in pairwise(chosen):
            if first.task == second.task:
                raise UserError(f"task {first.task} is in the plan twice; a plan has one head a task")
        return cls(chosen, costs.cost(chosen))

    @property
    def average(self) -> float:
        """The average retention: mean score over full fine-tuning's mean score."""
        return math.fsum(option.score for option in self.options) / math.fsum(option.full for option in self.options)

    @property
    def worst(self) -> Option:
        """The option with the lowest retention."""
        return min(self.options, key=lambda option: option.retention)

    @property
    def taps(self) -> tuple[int, ...]:
        """The taps of the trunk in use, lowest first; heads on limbs use the tap below the limb."""
        return tuple(sorted({trunk_tap(option) for option in self.options}))

    @property
    def limbs(self) -> tuple[str, ...]:
        """The identities of the limbs in use."""
        return tuple(sorted({option.limb for option in self.options if option.limb}))

    @property
    def share(self) -> float:
        """The cost as a share of as many single-task models of the usual kind."""
        return self.cost.share
