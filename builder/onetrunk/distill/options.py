"""What can be served for a task: one trained student, with its score and where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query


@dataclass(frozen=True, order=True)
class Option:
    """A student that could be a task's head.

    Attributes:
        task: the task.
        tap: where it stands.
        layers: how many layers it has, the folded one among them.
        query: the query of its folded layer.
        score: its score on the dev data, as a share (0.825, not 82.5), mean over seeds where there are several.
        full: the score of full fine-tuning of the same encoder on the same task, in the same metric.
        run: the key of the run record that it comes from.
        by_token: whether it answers for every token; None is no.
    """

    task: str
    tap: int
    layers: int
    query: Query
    score: float
    full: float
    run: str = ""
    by_token: bool | None = None

    def __post_init__(self) -> None:
        where = f"option {self.run or self.task}"
        if self.tap < 0 or self.layers < 1:
            raise UserError(f"{where}: tap {self.tap} and {self.layers} layers: give a tap from 0 and layers from 1")
        if not (math.isfinite(self.score) and abs(self.score) <= 1):
            raise UserError(f"{where}: score {self.score}: give it as a share, as 0.825 for 82.5")
        # A correlation may be negative; where full fine-tuning's is, there is nothing to keep a share of.
        if not 0 < self.full <= 1:
            raise UserError(
                f"{where}: full fine-tuning's score is {self.full}: a share from 0 to 1, above 0, is needed"
            )

    @property
    def whole_layers(self) -> int:
        """The layers that run whole."""
        return self.layers if self.by_token else self.layers - 1

    @property
    def retention(self) -> float:
        """What it keeps of full fine-tuning's score; above 1 where it is better."""
        return self.score / self.full


def by_task(options: list[Option]) -> dict[str, list[Option]]:
    """The options of each task, by name.

    Raises:
        UserError: there are none, or a task's options name different scores of full fine-tuning.
    """
    if not options:
        raise UserError("no trained student to choose from: train some with search-heads run first")
    tasks: dict[str, list[Option]] = {}
    for option in sorted(options):
        tasks.setdefault(option.task, []).append(option)
    for task, group in tasks.items():
        if len(found := sorted({option.full for option in group})) > 1:
            raise UserError(
                f"task {task}: full fine-tuning has the scores {found} in different options; all need the same one"
            )
    return tasks
