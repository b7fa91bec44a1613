"""The chosen plan beside what else could have been chosen: the whole frontier, and the paper's own selections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.mixed import mixed_plans
from benchmarks.study.recorded_study import RecordedStudy
from onetrunk.distill.frontier import frontier
from onetrunk.distill.options import Option
from onetrunk.distill.pipeline import servable_options
from onetrunk.distill.plan import Plan
from onetrunk.distill.rates import Rates
from onetrunk.protocol.errors import UserError

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Alternatives:
    """Plans of the same students. Scores are of the search's own seed, costs by the cost table.

    Attributes:
        chosen: the chosen plan; None where there is none.
        paper: the paper's configurations, ``KD-1`` to ``KD-3`` and ``Mixed-1`` to ``Mixed-3``.
        frontier: every plan that no other beats in both cost and quality, cheapest first.
    """

    chosen: Plan | None
    paper: Mapping[str, Plan]
    frontier: Sequence[Plan]

    @classmethod
    def of(cls, study: RecordedStudy) -> Alternatives:
        """What could be chosen of a study's students.

        Raises:
            UserError: costs, searches or baselines have not been measured yet. The message says which.
        """
        if study.costs is None:
            raise UserError("the costs of the parts have not been measured")
        if not study.tasks:
            raise UserError("no task has been searched")
        rates = study.costs.rates()
        options = servable_options(study.runs, study.tasks)
        full = {option.task: option.full for option in options}
        return cls(_chosen(study, full, rates), _paper(study, options, rates), frontier(options, rates))

    def best_within(self, share: float) -> Plan | None:
        """The best plan of the frontier that costs at most this share of single-task models."""
        return next((plan for plan in reversed(self.frontier) if plan.share <= share + _ROUNDING), None)


def _chosen(study: RecordedStudy, full: Mapping[str, float], rates: Rates) -> Plan | None:
    if study.plan is None:
        return None
    # Full fine-tuning may have got more seeds since the plan was written.
    return Plan.of([dataclasses.replace(option, full=full[option.task]) for option in study.plan.options], rates)


def _paper(study: RecordedStudy, options: Sequence[Option], rates: Rates) -> dict[str, Plan]:
    """The paper's configurations: students only, each task's on the tap of its best one."""
    students, taps = set(), {}
    for task in study.tasks:
        trials = study.trials("search", task)
        # A teacher of one layer has no student, and needs none: it is what is served.
        distilled = [trial for trial in trials if trial.stage == "student"] or [
            trial for trial in trials if trial.stage == "teacher" and not trial.stopped
        ]
        if not distilled:
            raise UserError(f"task {task} has no teacher yet")
        taps[task] = max(distilled, key=lambda trial: trial.score).spec.recipe.resolved_tap
        students |= {trial.key for trial in distilled}
    return mixed_plans([option for option in options if option.run in students], rates, taps)
