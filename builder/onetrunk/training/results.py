"""The result of training a head, and the table of several results: for a reader, for docs/results, for a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onetrunk.protocol.errors import UserError, counted
from onetrunk.tasks.head_spec import TEACHERS_LABELS, HeadSpec

# torch is imported where it computes: the table of results does not need it.
if TYPE_CHECKING:
    from onetrunk.training.curve import CurvePoint, LearningCurve

COLUMNS = (
    "task",
    "tap",
    "layers",
    "dev score",
    "test score",
    "best epoch",
    "train rows",
    "dev rows",
    "trunk s",
    "head s",
)
CURVE_COLUMNS = ("task", "train rows", "share", "dev score", "epochs", "head s")


@dataclass(frozen=True)
class TrainResult:
    """A trained head in its bundle.

    Attributes:
        spec: The bundle's head.json: scores, recipe, data.
        bundle: The bundle's folder.
        already_there: Whether nothing was trained, since the bundle existed with the same recipe, trunk and data.
        epoch_scores: The dev scores after every epoch, by metric; empty where nothing was trained.
        trunk_seconds: What the passes of the trunk took that computed the states, whenever that was.
        train_seconds: What training the head took, evaluations included, over all sessions of a resumed training.
        cache_bytes: The size of the states that the head was trained and evaluated on.
        notes: What a user should know: rows left out, texts cut, labels that never occur.
        curve: The learning curve, if it was asked for.
    """

    spec: HeadSpec
    bundle: Path
    already_there: bool = False
    epoch_scores: tuple[dict[str, float], ...] = ()
    trunk_seconds: float = 0.0
    train_seconds: float = 0.0
    cache_bytes: int = 0
    notes: tuple[str, ...] = ()
    curve: LearningCurve | None = None

    @property
    def score(self) -> float:
        """The score by the metric that chose the epoch."""
        return self.spec.scores[self.spec.metric]


def judged_by(spec: HeadSpec) -> str:
    """Return words to put behind the dev scores of a head whose dev labels are a teacher's; none for others."""
    return " (agreement with the teacher)" if spec.data.get("dev_labels") == TEACHERS_LABELS else ""


def row_cells(result: TrainResult) -> tuple[str, ...]:
    """Return a result's table row. The seconds are those of its training, whenever that was."""
    spec = result.spec
    scores = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in spec.scores.items())
    return (
        spec.task,
        str(spec.tap),
        str(spec.layers),
        f"{scores}{judged_by(spec)}",
        "" if spec.test is None else f"{spec.metric} {100 * spec.test.scores[spec.metric]:.1f}",
        f"{spec.recipe['best_epoch']} of {spec.recipe['epochs']}",
        f"{spec.data['train_rows']:,}",
        f"{spec.data['dev_rows']:,}",
        f"{spec.recipe['trunk_seconds']:.1f}",
        f"{spec.recipe['train_seconds']:.1f}",
    )


def curve_cells(task: str, metric: str, point: CurvePoint) -> tuple[str, ...]:
    """Return the table row of a point of a task's learning curve."""
    return (
        task,
        f"{point.texts:,}",
        f"{100 * point.share:g} %",
        f"{metric} {100 * point.score:.1f}",
        str(point.epochs),
        f"{point.seconds:.1f}",
    )


def as_values(result: TrainResult) -> dict[str, Any]:
    """Return a result as plain values, for JSON."""
    return {
        **result.spec.model_dump(mode="json"),
        "bundle": str(result.bundle),
        "already_there": result.already_there,
        "epoch_scores": list(result.epoch_scores),
        "cache_bytes": result.cache_bytes,
        "notes": list(result.notes),
        **({"curve": result.curve.as_values()} if result.curve is not None else {}),
    }


def write_report(path: Path, results: Sequence[TrainResult], *, command: str, machine: str) -> None:
    """Write a Markdown table of results, and the same as JSON beside it.

    Args:
        path: A file ``*.md``.
        results: The results, one row each.
        command: The command that was given.
        machine: What it ran on.

    Raises:
        UserError: The file's name does not end in .md, or it cannot be written.
    """
    check_report_path(path)
    mean = sum(result.score for result in results) / len(results)
    lines = [
        "# Heads",
        "",
        f"Trunk `{results[0].spec.trunk}`. Written by `{command}` on {machine}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row_cells(result))} |" for result in results),
        "",
        f"Mean of the first metric over {counted(len(results), 'task', 'tasks')}: {100 * mean:.1f}. "
        "The best epoch is chosen on the same dev data, so the scores are a little optimistic.",
        "Trunk s: the trunk's pass over train and dev texts, once, whatever is trained on it; "
        "head s: all epochs on its cached states.",
        *_curves(results),
    ]
    values = {"command": command, "machine": machine, "heads": [as_values(result) for result in results]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def _curves(results: Sequence[TrainResult]) -> Iterator[str]:
    """Yield the lines of the learning curves, if there are any."""
    curves = [(result.spec.task, result.curve) for result in results if result.curve is not None]
    if not curves:
        return
    yield from ("", "## Learning curves", "", f"| {' | '.join(CURVE_COLUMNS)} |", f"|{'---|' * len(CURVE_COLUMNS)}")
    for task, curve in curves:
        for point in curve.points:
            yield f"| {' | '.join(curve_cells(task, curve.metric, point))} |"
    yield ""
    yield from (f"- {task}: {curve.note}." for task, curve in curves)


def check_report_path(path: Path) -> None:
    """Check that the name is that of a Markdown file: better before a training than after it.

    Raises:
        UserError: The name does not end in .md.
    """
    if path.suffix != ".md":
        raise UserError(f"--results {path}: give a file *.md; the same values are written to a file *.json beside it")
