"""The table of what was trained: for a person, for docs/results, and for a script."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onetrunk.machine import processor_name
from onetrunk.protocol.errors import UserError
from onetrunk.training.result import TrainResult

COLUMNS = ("task", "tap", "layers", "dev score", "best epoch", "train rows", "dev rows", "trunk s", "head s")


def row_cells(result: TrainResult) -> tuple[str, ...]:
    """A head's row, column by column. The seconds are those of its training, whenever that was."""
    spec = result.spec
    scores = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in spec.scores.items())
    return (
        spec.task,
        str(spec.tap),
        str(spec.layers),
        scores,
        f"{spec.recipe['best_epoch']} of {spec.recipe['epochs']}",
        f"{spec.data['train_rows']:,}",
        f"{spec.data['dev_rows']:,}",
        f"{spec.recipe['trunk_seconds']:.1f}",
        f"{spec.recipe['train_seconds']:.1f}",
    )


def as_values(result: TrainResult) -> dict[str, Any]:
    """A result as plain values."""
    return {
        **result.spec.model_dump(mode="json"),
        "bundle": str(result.bundle),
        "already_there": result.already_there,
        "epoch_scores": list(result.epoch_scores),
        "cache_bytes": result.cache_bytes,
        "notes": list(result.notes),
    }


def write_report(path: Path, results: Sequence[TrainResult], command: str) -> None:
    """Writes a Markdown table, and the same in JSON beside it.

    Args:
        path: a file ``*.md``.
        results: a row each.
        command: what was typed.

    Raises:
        UserError: the file's name does not end in .md, or cannot be written.
    """
    check_report_path(path)
    machine = machine_name()
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
        f"Mean of the first metric over {len(results)} tasks: {100 * mean:.1f}. "
        "The best epoch is chosen on the same dev data, so the scores are a little optimistic.",
        "Trunk s: the trunk's pass over train and dev texts, once, whatever is trained on it; "
        "head s: all epochs on its cached states.",
    ]
    values = {"command": command, "machine": machine, "heads": [as_values(result) for result in results]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        path.with_suffix(".json").write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def check_report_path(path: Path) -> None:
    """Raises UserError where the name is not that of a Markdown file: better before training than after."""
    if path.suffix != ".md":
        raise UserError(f"--results {path}: give a file *.md; the same goes into a file *.json beside it")


def machine_name() -> str:
    """The processor or GPU, and what it ran."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"{processor_name()[:-1]}, {torch.get_num_threads()} in use), {versions}"
