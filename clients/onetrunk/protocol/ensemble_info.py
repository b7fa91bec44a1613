"""The JSON in the parameter ``onetrunk`` of both ensembles, from which clients and the launcher learn the tasks."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onetrunk.protocol.head_json import Form
from onetrunk.protocol.reference import Reference
from onetrunk.protocol.traffic_split import CandidateInfo

SCHEMA: Literal[1] = 1


class TaskInfo(BaseModel):
    """A task as it is served.

    What a kind adds to these attributes is kept as attributes of the same names: ``thresholds`` of multilabel,
    ``none_below`` of classification, ``scheme`` of tagging, ``width`` of an embedding.

    Attributes:
        name: The task, and the name of its output.
        kind: ``classification``, ``multilabel``, ``regression``, ``tagging``, ``embedding``, or one that the reader may
            not know.
        form: Whether it reads one text or a pair.
        labels: The labels in the order of its scores, or of tagging the types of spans; None if the kind has none.
        range: The lowest and the highest number of a regression; None for other kinds.
        metric: The name of the metric that it is judged by.
        tap: The number of layers below its head: the trunk's, and those of its limb.
        limb: The identity of the limb that its head stands on; None for the trunk itself.
        layers: The number of its head's own layers; 0 for a head without weights.
        version: The version of its head model.
        reads_as: The kind whose answers are read in the same way, if it is not its own.
        reference: A summary of its answers on the dev data; None if its bundle has none.
        on_request: Whether it is asked only by its name: who asks every task does not mean it.
        candidate: The candidate that answers a share of its traffic; None if there is none.
        long_texts: ``windows`` if texts that are longer than ``max_length`` are read in windows; else they are cut.
        window_overlap: The share of a window that the next one reads again; None where texts are cut.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    kind: str
    form: Form
    labels: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None
    metric: str
    tap: int = Field(ge=0)
    limb: str | None = None
    layers: int = Field(ge=0)
    version: int = Field(ge=1)
    reads_as: str | None = None
    reference: Reference | None = None
    on_request: bool = False
    candidate: CandidateInfo | None = None
    long_texts: str = "cut"
    window_overlap: float | None = None

    @property
    def reads_windows(self) -> bool:
        """Whether long texts are read in windows."""
        return self.long_texts == "windows"

    @property
    def read_kind(self) -> str:
        """The kind as which its answers are read."""
        return self.reads_as or self.kind

    @property
    def as_candidate(self) -> TaskInfo:
        """The task by which the scores of its candidate are read; itself if there is none."""
        if self.candidate is None or self.candidate.reads is None:
            return self
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**own, **self.candidate.reads})

    @property
    def candidate_reads_alike(self) -> bool:
        """Whether who knows the live head alone reads the candidate's scores right."""
        return self.as_candidate.model_extra == self.model_extra

    def record(self) -> dict[str, Any]:
        """Return the task as JSON values, without its name."""
        absent = {
            name for name in ("limb", "reads_as", "reference", "on_request", "candidate") if not getattr(self, name)
        }
        if not self.reads_windows:
            absent |= {"long_texts", "window_overlap"}
        record = self.model_dump(mode="json", exclude={"name"} | absent)
        if self.reference is not None:
            record["reference"] = self.reference.model_dump(mode="json", exclude_none=True)
        return record


class EnsembleInfo(BaseModel):
    """What an ensemble says about itself.

    Attributes:
        trunk: The identity of the trunk below all heads.
        max_length: The most tokens in one row.
        buckets: The padded lengths in tokens.
        tasks: Output -> the task that it answers.
    """

    model_config = ConfigDict(frozen=True)

    trunk: str
    max_length: int = Field(ge=1)
    buckets: tuple[int, ...] = Field(min_length=1)
    tasks: dict[str, TaskInfo]

    def text(self) -> str:
        """Return the JSON."""
        tasks = {name: task.record() for name, task in self.tasks.items()}
        return json.dumps({"schema": SCHEMA, **self.model_dump(mode="json", exclude={"tasks"}), "tasks": tasks})


def read_ensemble_info(text: str) -> EnsembleInfo:
    """Read the JSON of an ensemble's parameter.

    Raises:
        ValueError: The text is not JSON, of another schema, or incomplete. The message is one line.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise ValueError(
            f"found schema {found!r}, this version reads schema {SCHEMA}: "
            "bring client, server and repository to one version"
        )
    if isinstance(tasks := values.get("tasks"), dict):
        named = {name: {**task, "name": name} if isinstance(task, dict) else task for name, task in tasks.items()}
        values = {**values, "tasks": named}
    try:
        return EnsembleInfo.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}") from None
