"""Which runs belong to what: a search, a full grid, an ablation. The runs themselves are records of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError
from onetrunk.training.runs import RunRecord, RunSpec

Study = Literal["baseline", "search", "grid", "ablation", "seeds"]
Stage = Literal["baseline", "probe", "fork", "teacher", "student", "ablation"]


class Trial(BaseModel):
    """One run as a study saw it. A run that it stopped may have gone on later, for another one.

    Attributes:
        stage: its part in the study.
        what: what it varies, in words, such as ``start: random``.
        key: of its record.
        spec: what was trained.
        score: the best dev score so far, by the task's first metric, as a share.
        epochs: done.
        stopped: it was a loser, and stopped before its end.
        cpu_seconds: what it had cost.
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
        study: which one.
        task: of which task.
        metric: the metric of all scores.
        by_token: whether its heads answer for every token, and so have no folded layer.
        trunk_cpu_seconds: what computing the trunk's states cost, which all studies share; not in the trials.
        trials: in the order in which they were done.
        notes: what a reader should know, such as why a depth was left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: Study
    task: str
    metric: str
    by_token: bool = False
    trunk_cpu_seconds: float = 0.0
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cpu_seconds(self) -> float:
        """What all its runs cost, the trunk's pass not counted."""
        return sum(trial.cpu_seconds for trial in self.trials)


def as_trial(record: RunRecord, stage: Stage, what: str = "") -> Trial:
    """A run as it stands now."""
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
    """Writes ``<task>.<study>.json``, whole or not at all. Raises OneTrunkError where that fails."""
    path = folder / f"{trials.task}.{trials.study}.json"
    atomic_write_text(path, trials.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    return path


def load_trials(folder: Path, studies: Iterable[Study]) -> list[Trials]:
    """All studies of these names in a folder, by task. Raises UserError where a file is broken."""
    return [read_trials(path) for study in studies for path in sorted(folder.glob(f"*.{study}.json"))]


def read_trials(path: Path) -> Trials:
    """Reads one study. Raises UserError where it is broken."""
    try:
        return Trials.model_validate(json.loads(path.read_bytes()))
    except (ValidationError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a study's file: {first}; remove it, and the study is gone through again"
        ) from error
