"""The tables of what a search did and cost, and of the full grids that it is compared with."""

from __future__ import annotations

from benchmarks.study.markdown import NOT_YET, gain, percent, points, seconds, table, times
from benchmarks.study.recorded_study import RecordedStudy
from benchmarks.study.search_cost import GridProof, SearchCost, TaskSearch, task_searches
from benchmarks.study.seed_scores import SeedScores
from onetrunk.distill.trials import Trial

_SEARCH = (
    "task",
    "taps probed",
    "teachers whole",
    "teachers stopped early",
    "students",
    "search CPU s",
    "one full fine-tuning CPU s",
    "ratio",
    "trunk's pass CPU s",
)
_GRID = (
    "task",
    "grid's best",
    "its score",
    "search's best",
    "its score",
    "difference",
    "full fine-tuning's deviation",
    "grid CPU s",
    "search CPU s",
    "saved",
)


def search_table(study: RecordedStudy, cost: SearchCost | None) -> list[str]:
    """A row a task, and their sum."""
    searches = task_searches(study)
    if not searches:
        return [f"The searches: {NOT_YET}."]
    rows = [_search_row(search) for search in searches]
    if cost:
        sums = (
            seconds(cost.search_seconds),
            seconds(cost.full_seconds),
            times(cost.ratio),
            seconds(cost.trunk_seconds),
        )
        counts = [
            str(sum(search.count(stage, stopped=stopped) for search in searches))
            for stage, stopped in (("probe", None), ("teacher", False), ("teacher", True), ("student", None))
        ]
        rows.append(("all", *counts, *sums))
    return [
        *table(_SEARCH, rows),
        "",
        "Seconds are of the CPU, so that what else the machine did does not count. The trunk's pass over each task's "
        "texts serves every run and is kept apart from the ratio.",
    ]


def grid_table(study: RecordedStudy) -> list[str]:
    """A row for each task that has a grid."""
    proofs = [proof for task in study.tasks if (proof := GridProof.of(task, study))]
    if not proofs:
        return [f"The full grids: {NOT_YET}."]
    return [
        *table(_GRID, [_grid_row(proof, study) for proof in proofs]),
        "",
        "The grid has a teacher on every tap, each trained to its end. The search's seconds here are those of its "
        "probes and teachers, which do the grid's work; students come on top of either.",
        *(
            f"The grid of {proof.task} is not finished: {len(proof.grid)} of {proof.depth} taps."
            for proof in proofs
            if not proof.is_finished
        ),
    ]


def _search_row(search: TaskSearch) -> tuple[str, ...]:
    ratio = search.seconds / search.full_seconds if search.full_seconds else None
    return (
        search.task,
        str(search.count("probe")),
        str(search.count("teacher", stopped=False)),
        str(search.count("teacher", stopped=True)),
        str(search.count("student")),
        seconds(search.seconds),
        seconds(search.full_seconds),
        times(ratio),
        seconds(search.trunk_seconds),
    )


def _grid_row(proof: GridProof, study: RecordedStudy) -> tuple[str, ...]:
    best, searched = proof.best, proof.searched
    scores = [trial.score for trial in study.trials("baseline", proof.task)]
    deviation = SeedScores(tuple(scores)).deviation if scores else None
    return (
        proof.task,
        _where(best),
        points(best.score),
        _where(searched) if searched else NOT_YET,
        points(searched.score if searched else None),
        gain(searched.score - best.score if searched else None),
        NOT_YET if deviation is None else points(deviation),
        seconds(proof.grid_seconds),
        seconds(proof.search_seconds) if searched else NOT_YET,
        percent(1 - proof.search_seconds / proof.grid_seconds, 0) if searched and proof.grid_seconds else NOT_YET,
    )


def _where(trial: Trial) -> str:
    recipe = trial.spec.recipe
    return f"tap {recipe.resolved_tap}, top {recipe.layers}"
