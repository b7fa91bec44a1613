"""Recorded runs as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import UserError
from onetrunk.training.runs import RunRecord


def write_events(records: Iterable[RunRecord], folder: Path) -> list[Path]:
    """Writes a folder a run: its loss and dev scores over the epochs, its settings as hyperparameters.

    A run's event files from before are replaced, or TensorBoard would show each curve twice.

    Args:
        records: the runs.
        folder: where to; TensorBoard is started with ``--logdir`` on it.

    Returns:
        The runs' folders.

    Raises:
        UserError: the package tensorboard is not installed, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        raise UserError("--tensorboard needs a package that is not installed: pip install tensorboard") from None
    settings_of: Any = hparams  # torch leaves its types out
    written = []
    for record in records:
        run = folder / f"{record.spec.task}-{record.spec.role}-{record.key}"
        try:
            for old in run.glob("events.out.tfevents.*"):
                old.unlink()
            writer: Any = SummaryWriter(str(run))
            for epoch, loss in enumerate(record.losses, start=1):
                writer.add_scalar("loss/train", loss, epoch)
            for epoch, scores in enumerate(record.epoch_scores, start=1):
                for metric, score in scores.items():
                    writer.add_scalar(f"dev/{metric}", score, epoch)
            best = {f"best/{metric}": score for metric, score in record.scores.items()}
            # As SummaryWriter.add_hparams does, but into the run's own file instead of a folder named after the time.
            for summary in settings_of(_settings(record), best):
                writer.file_writer.add_summary(summary)
            for name, score in best.items():
                writer.add_scalar(name, score, record.best_epoch)
            writer.close()
        except OSError as error:
            raise UserError(f"{run}: cannot be written: {error}") from error
        written.append(run)
    return written


def _settings(record: RunRecord) -> dict[str, bool | str | float | int]:
    """What can be compared across runs; TensorBoard takes plain values only."""
    spec = record.spec
    values: dict[str, Any] = {"task": spec.task, "role": spec.role, **spec.recipe.model_dump()}
    if spec.distillation is not None:
        values |= {f"distillation.{name}": value for name, value in spec.distillation.model_dump().items()}
    values |= {"trunk": record.trunk, "device": record.device, "state": record.state, "parameters": record.parameters}
    return {name: value for name, value in values.items() if isinstance(value, bool | str | float | int)}
