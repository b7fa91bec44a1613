"""Runs: what a training is and depends on, what it leaves on disk, and the key by which it is found."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Limb
from onetrunk.protocol.names import check_task_name
from onetrunk.protocol.reading import read_json
from onetrunk.tasks import Recipe

MAX_RECORD_BYTES = 16 * 2**20
"""The largest JSON file of a search that is read. A run record takes a few kB, a study of many trials some hundreds."""

# Keys and tasks become names of files: no record may lead out of the folder of its search, or of the cache.
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]*$")]
TaskName = Annotated[str, AfterValidator(check_task_name)]

Role = Literal["full", "teacher", "student", "fork"]
Start = Literal["teacher", "trunk", "random"]


class Distillation(BaseModel):
    """How a student learns from its teacher.

    Attributes:
        teacher: The key of the teacher's run.
        start: Where the student's first weights come from: the teacher's lowest layers (the paper's choice), the
            trunk's own layers at the same depth, or a random initialisation.
        soft: Whether the student learns the teacher's outputs; otherwise it learns the labels alone.
        temperature: The temperature by which the teacher's probabilities are softened.
        state_weight: The weight of the difference between the two last states; 0 leaves it out.
        other_texts: The number of texts of other tasks of the same form, labelled by the teacher, for each of the
            task's own texts.
        masked_texts: The number of copies of the task's own texts with words masked, labelled by the teacher, for each
            of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: Key
    start: Start = "teacher"
    soft: bool = True
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    state_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    other_texts: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    masked_texts: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class RunSpec(BaseModel):
    """The specification of one training.

    Attributes:
        task: The name of the task.
        role: ``full``: the whole encoder is fine-tuned, embeddings included. ``teacher``: all layers above the tap
            are. ``student``: a shorter head learns from a teacher. ``fork``: a head is trained on the labels alone,
            starting from the trunk's own layers.
        recipe: How it is trained, with its tap and layers.
        distillation: How a student learns; None for other roles.
        share: The share of the train texts that a ``fork`` is trained on, for a learning curve.
        limb: The identity of the limb that the head stands on; None is the trunk that the experiment has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: TaskName
    role: Role
    recipe: Recipe
    distillation: Distillation | None = None
    share: float = Field(default=1.0, gt=0, le=1)
    limb: Limb | None = None

    def key(self, *facts: str) -> str:
        """Return a hash over the spec and the facts that are not in it: trunk, data, device."""
        # Defaults are left out: a new setting that is off by default does not change the keys of recorded runs.
        spec = self.model_dump_json(exclude_defaults=True)
        return hashlib.sha256("\0".join([spec, *facts]).encode()).hexdigest()[:16]

    def with_seed(self, seed: int) -> RunSpec:
        """Return the same run with another seed."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"seed": seed})})


class RunRecord(BaseModel):
    """The record of a training that is finished or was stopped: a small JSON file that reports are made from.

    Attributes:
        schema_version: The version of this schema.
        key: The key by which the run is found.
        spec: What was trained, and how.
        state: ``finished``, or ``stopped`` where a search stopped it early; such a run is resumed when it is needed
            whole.
        metric: The metric that chose the best epoch.
        answers: What was answered, and from which columns; see ``Task.answers``. Empty in older records.
        scores: The dev scores after the best epoch by metric, as shares.
        best_epoch: The number of the best epoch, from 1.
        losses: The mean training loss of each epoch.
        epoch_scores: The dev scores after each epoch, by metric.
        seconds: The wall-clock time of all epochs with their evaluations and of the teacher's labelling, over all
            sessions of a resumed training.
        cpu_seconds: The processor time of this process, all its threads added up; other work on the machine does not
            count.
        labelling_cpu_seconds: The part of it in which the training data were prepared: the teacher's labelling.
        parameters: The number of trained parameters.
        texts: The number of train texts an epoch, those without a label included.
        data: The hashes and row counts of the data.
        trunk: The identity of the trunk.
        device: The device.
        machine: The processor or GPU, and the versions of Python and torch.
        created: The day.
        version: The version of OneTrunk; empty in older records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    key: Key
    spec: RunSpec
    state: Literal["finished", "stopped"]
    metric: str
    answers: str = ""
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
    version: str = ""

    @property
    def score(self) -> float:
        """The best dev score, by the metric that chose the epoch."""
        return self.scores[self.metric]


class RunStore:
    """A folder of run records, one JSON file each, named ``<task>-<role>-<key>.json``.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, spec: RunSpec, key: str) -> RunRecord | None:
        """Return the record of a run; None where there is none.

        Raises:
            UserError: The record is broken.
        """
        path = self._path(spec, key)
        return read_record(path) if path.is_file() else None

    def by_key(self, key: str) -> RunRecord:
        """Return the record with a key.

        Raises:
            UserError: There is none, or it is broken.
        """
        for path in self.folder.glob(f"*-{glob.escape(key)}.json"):
            return read_record(path)
        raise UserError(f"{self.folder}: no record of run {key}; give the folder of its search by --study")

    def save(self, record: RunRecord) -> None:
        """Write a record.

        Raises:
            OneTrunkError: It cannot be written.
        """
        atomic_write_text(self._path(record.spec, record.key), record.model_dump_json(indent=1) + "\n")

    def __iter__(self) -> Iterator[RunRecord]:
        """Iterate over all records in the order of their file names."""
        for path in sorted(self.folder.glob("*-*-*.json")):
            yield read_record(path)

    def _path(self, spec: RunSpec, key: str) -> Path:
        return self.folder / f"{spec.task}-{spec.role}-{key}.json"


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        UserError: It is broken or of another schema.
    """
    try:
        return RunRecord.model_validate(read_json(path, max_bytes=MAX_RECORD_BYTES))
    except (ValidationError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a run record: {first}; remove it, and the run is trained again") from error
