"""What a training leaves behind: a small JSON file that says all of it, and that reports are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError
from onetrunk.training.run_spec import RunSpec


class RunRecord(BaseModel):
    """A finished or stopped training.

    Attributes:
        key: what it is found by.
        spec: what was trained, and how.
        state: ``finished``, or ``stopped`` where it was a loser of a search; such a run goes on if it is wanted whole.
        metric: the metric that chose the best epoch.
        scores: on the dev data after the best epoch, by metric, as shares.
        best_epoch: from 1.
        losses: mean training loss of each epoch.
        epoch_scores: dev scores after each epoch, by metric.
        seconds: by the clock, all epochs with their evaluations, and the teacher's labelling.
        cpu_seconds: of this process's threads; what other work on the machine took does not count.
        labelling_cpu_seconds: the part of it in which the teacher labelled texts.
        parameters: how many numbers were trained.
        texts: training texts an epoch, unlabelled ones too.
        data: hashes and rows of the data.
        trunk: the trunk's identity.
        device: where it ran.
        machine: processor and versions.
        created: the day.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    key: str
    spec: RunSpec
    state: Literal["finished", "stopped"]
    metric: str
    scores: dict[str, float]
    best_epoch: int
    losses: tuple[float, ...]
    epoch_scores: tuple[dict[str, float], ...]
    seconds: float
    cpu_seconds: float
    labelling_cpu_seconds: float = 0.0
    parameters: int
    texts: int
    data: dict[str, Any]
    trunk: str
    device: str
    machine: str
    created: str

    @property
    def score(self) -> float:
        """The best dev score, by the metric that chose the epoch."""
        return self.scores[self.metric]


class RunStore:
    """A folder of run records, one JSON file each, named ``<task>-<role>-<key>.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, spec: RunSpec, key: str) -> RunRecord | None:
        """The record of a run; None where it has not been done."""
        path = self._path(spec, key)
        return read_record(path) if path.is_file() else None

    def by_key(self, key: str) -> RunRecord:
        """The record of a key. Raises UserError where there is none."""
        for path in self.folder.glob(f"*-{key}.json"):
            return read_record(path)
        raise UserError(f"{self.folder}: no record of run {key}; give the folder of its search by --study")

    def save(self, record: RunRecord) -> None:
        """Writes a record, whole or not at all. Raises OneTrunkError where that fails."""
        atomic_write_text(self._path(record.spec, record.key), record.model_dump_json(indent=1) + "\n")

    def __iter__(self) -> Iterator[RunRecord]:
        """All records, by file name."""
        for path in sorted(self.folder.glob("*-*-*.json")):
            yield read_record(path)

    def _path(self, spec: RunSpec, key: str) -> Path:
        return self.folder / f"{spec.task}-{spec.role}-{key}.json"


def read_record(path: Path) -> RunRecord:
    """Reads a record. Raises UserError where it is broken or of another schema."""
    try:
        return RunRecord.model_validate(json.loads(path.read_bytes()))
    except (ValidationError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a run record: {first}; remove it, and the run is done again") from error
