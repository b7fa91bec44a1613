"""Trials: which runs belong to a search, a baseline, a grid or an ablation. The runs themselves are records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import read_json
from onetrunk.training.runs import MAX_RECORD_BYTES, RunRecord, RunSpec, TaskName

Study = Literal["baseline", "search", "grid", "ablation", "seeds"]
Stage = Literal["baseline", "probe", "fork", "teacher", "student", "ablation"]


class Trial(BaseModel):
    """One run as a study saw it. A run that the study stopped may have been resumed later, by another study.

    Attributes:
        stage: The run's part in the study.
        what: What it varies, in words, such as ``start: random``.
        key: The key of its record.
        spec: What was trained.
        score: The best dev score so far by the task's first metric, as a share.
        epochs: The number of finished epochs.
        stopped: Whether the study stopped it early.
        cpu_seconds: The processor time that it had cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    what: str = ""
    key: str
    spec: RunSpec
    score: float
    epochs: int
    stopped: bool
    cpu_seconds: float


class Trials(BaseModel):
    """All runs of one study of one task.

    Attributes:
        study: The study.
        task: The task.
        metric: The metric of all scores.
        by_token: Whether its heads answer for every token, and so have no folded layer.
        trunk_cpu_seconds: The processor time of the trunk's passes, which all studies share; it is not in the trials.
        trials: The runs in their order.
        notes: What a reader should know, such as why a depth was left out.
        complete: Whether the study came to its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: Study
    task: TaskName
    metric: str
    by_token: bool = False
    trunk_cpu_seconds: float = 0.0
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = True

    @property
    def cpu_seconds(self) -> float:
        """The processor time of all runs, without the trunk's passes."""
        return sum(trial.cpu_seconds for trial in self.trials)


def as_trial(record: RunRecord, stage: Stage, what: str = "") -> Trial:
    """Return a run in its present state as a trial."""
    return Trial(
        stage=stage,
        what=what,
        key=record.key,
        spec=record.spec,
        score=record.score,
        epochs=len(record.losses),
        stopped=record.state == "stopped",
        cpu_seconds=record.cpu_seconds,
    )


def save_trials(folder: Path, trials: Trials) -> Path:
    """Write ``<task>.<study>.json``, and return its path.

    Raises:
        OneTrunkError: The file cannot be written; the one before is kept.
    """
    path = folder / f"{trials.task}.{trials.study}.json"
    atomic_write_text(path, trials.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    return path


def load_trials(folder: Path, studies: Iterable[Study]) -> list[Trials]:
    """Read all studies of these names in a folder, in the order of the tasks' names.

    Raises:
        UserError: A file is broken.
    """
    return [read_trials(path) for study in studies for path in sorted(folder.glob(f"*.{study}.json"))]


def read_trials(path: Path) -> Trials:
    """Read one study.

    Raises:
        UserError: The file is broken.
    """
    try:
        return Trials.model_validate(read_json(path, max_bytes=MAX_RECORD_BYTES))
    except (ValidationError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a study's file: {first}; remove it and search again") from error
