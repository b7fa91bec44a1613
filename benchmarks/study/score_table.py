"""The table of tasks: full fine-tuning, teacher, student."""

from __future__ import annotations

from benchmarks.study.markdown import NOT_YET, over_seeds, percent, points, table, whole
from benchmarks.study.summary import Summary
from benchmarks.study.task_result import TaskResult

_COLUMNS = ("task", "metric", "full fine-tuning", "teacher", "student", "new seeds", "tap", "layers", "query", "kept")


def score_table(summary: Summary) -> list[str]:
    """A row a task."""
    return [
        *table(_COLUMNS, [_row(result) for result in summary.results]),
        "",
        "Dev scores in hundredths: mean ± standard deviation over seeds (number of seeds). Kept: student over full "
        "fine-tuning. New seeds: the student without the run by which the plan chose it; – where a large task has one "
        "seed. Teacher: the run that the student learned from, one seed; – where the head learned from labels alone.",
    ]


def _row(result: TaskResult) -> tuple[str, ...]:
    return (
        result.task,
        result.metric or NOT_YET,
        over_seeds(result.full),
        "–" if result.teacher is None and result.student else points(result.teacher),
        over_seeds(result.student),
        "–" if result.new_student is None and result.student else over_seeds(result.new_student),
        whole(result.tap),
        whole(result.layers),
        result.query or NOT_YET,
        percent(result.retention),
    )
