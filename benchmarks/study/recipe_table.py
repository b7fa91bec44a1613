"""The table of how things were trained, by what the recorded runs say."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.study.markdown import NOT_YET, table
from benchmarks.study.recorded_study import RecordedStudy
from onetrunk.distill.trials import Stage, Study, Trial

_ROWS: tuple[tuple[str, Study, Stage], ...] = (
    ("full fine-tuning", "baseline", "baseline"),
    ("probe", "search", "probe"),
    ("teacher", "search", "teacher"),
    ("student", "search", "student"),
)


def recipe_table(study: RecordedStudy) -> list[str]:
    """A row for each kind of run. Where tasks differ, all values are given."""
    rows = []
    for name, of, stage in _ROWS:
        trials = [trial for task in study.tasks for trial in study.trials(of, task) if trial.stage == stage]
        rows.append((name, *_cells(trials)) if trials else (name, *[NOT_YET] * 5))
    return table(("run", "epochs", "learning rate", "batch size", "dropout", "tokens at most"), rows)


def _cells(trials: list[Trial]) -> tuple[str, ...]:
    recipes = [trial.spec.recipe for trial in trials]
    return (
        _values(recipe.epochs for recipe in recipes),
        _values(recipe.learning_rate for recipe in recipes),
        _values(recipe.batch_size for recipe in recipes),
        _values("the trunk's own" if recipe.dropout is None else recipe.dropout for recipe in recipes),
        _values(recipe.max_length for recipe in recipes),
    )


def _values(values: Iterable[float | str]) -> str:
    words = {value if isinstance(value, str) else f"{value:g}" for value in values}
    return " or ".join(sorted(words))
