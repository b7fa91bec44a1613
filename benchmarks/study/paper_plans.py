"""The paper's own selections of heads, to compare a plan with.

Source: "A Flexible Multi-Task Model for BERT Serving", arXiv 2107.05377: KD-l gives every task l layers, Mixed-c adds
layers to a task's head for as long as each gains at least c points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onetrunk.distill.costs import PartCosts
from onetrunk.distill.plan import Option, Plan, by_task
from onetrunk.distill.results import PlanChoices, SearchRecords
from onetrunk.protocol.errors import UserError

_TOLERANCE = 1e-9


def paper_plans(choices: PlanChoices, records: SearchRecords) -> dict[str, Plan]:
    """Return the paper's configurations of a search's students, each task's on the tap of its best student.

    Raises:
        UserError: A task has neither a student nor a teacher.
    """
    students, taps = set(), {}
    for task in records.tasks:
        trials = records.trials("search", task)
        # A teacher of one layer has no student and needs none: it is served as it is.
        distilled = [trial for trial in trials if trial.stage == "student"] or [
            trial for trial in trials if trial.stage == "teacher" and not trial.stopped
        ]
        if not distilled:
            raise UserError(f"task {task} has no teacher yet")
        taps[task] = max(distilled, key=lambda trial: trial.score).spec.recipe.resolved_tap
        students |= {trial.key for trial in distilled}
    return select_plans([option for option in choices.options if option.run in students], choices.costs, taps)


def select_plans(
    options: Sequence[Option],
    costs: PartCosts,
    taps: Mapping[str, int],
    *,
    gains: Sequence[float] = (1, 2, 3),
    layers: Sequence[int] = (1, 2, 3),
) -> dict[str, Plan]:
    """Return the paper's configurations as plans: ``KD-1``, ``KD-2``, ``KD-3``, ``Mixed-1``, ...

    Args:
        options: The students of all tasks.
        costs: The costs of the parts.
        taps: Task -> the tap that its head stands on.
        gains: The values of c in Mixed-c.
        layers: The values of l in KD-l.

    Raises:
        UserError: A task has no tap, or no student there.
    """
    plans = {f"KD-{number}": Plan.of(select_uniform(options, taps, number), costs) for number in layers}
    return plans | {f"Mixed-{gain:g}": Plan.of(select_mixed(options, taps, gain), costs) for gain in gains}


def select_mixed(options: Iterable[Option], taps: Mapping[str, int], points: float) -> list[Option]:
    """Select per task, from one layer up, the longest head whose every layer gained enough.

    Args:
        options: The students of all tasks.
        taps: Task -> its tap, which the paper chooses beforehand by the teachers.
        points: The least gain that pays for a layer, in points (hundredths of a score).

    Raises:
        UserError: A task has no tap, or no student there.
    """
    chosen = []
    for students in _by_layers(options, taps).values():
        layers = min(students)
        while layers + 1 in students and _gain(students[layers], students[layers + 1]) >= points - _TOLERANCE:
            layers += 1
        chosen.append(students[layers])
    return chosen


def select_uniform(options: Iterable[Option], taps: Mapping[str, int], layers: int) -> list[Option]:
    """Select per task the student of this many layers, or the nearest shorter one, or else the shortest there is.

    Args:
        options: The students of all tasks.
        taps: Task -> its tap.
        layers: The number of layers.

    Raises:
        UserError: A task has no tap, or no student there.
    """
    chosen = []
    for students in _by_layers(options, taps).values():
        fewer = [count for count in students if count <= layers]
        chosen.append(students[max(fewer) if fewer else min(students)])
    return chosen


def _by_layers(options: Iterable[Option], taps: Mapping[str, int]) -> dict[str, dict[int, Option]]:
    """Return task -> number of layers -> the best student of that length on the task's tap."""
    found: dict[str, dict[int, Option]] = {}
    for task, group in by_task(list(options)).items():
        if task not in taps:
            raise UserError(f"task {task} has no tap to select on; taps are given for: {', '.join(taps) or 'none'}")
        students: dict[int, Option] = {}
        for option in group:
            best = students.get(option.layers)
            if option.tap == taps[task] and (best is None or option.score > best.score):
                students[option.layers] = option
        if not students:
            known = ", ".join(str(tap) for tap in sorted({option.tap for option in group}))
            raise UserError(f"task {task} has no student on tap {taps[task]}; it has some on {known}")
        found[task] = students
    return found


def _gain(shorter: Option, longer: Option) -> float:
    return 100 * (longer.score - shorter.score)
