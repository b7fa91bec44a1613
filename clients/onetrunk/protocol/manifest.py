"""``manifest.json``: the serialised state of a repository, which everyone may read and only its transaction writes.

It holds no time and no path of the machine, so that equal repositories have equal manifests, but for measurements.
These are in it only where somebody asked for them, or for a reduced precision, and name what they were made by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from onetrunk.protocol.commit import RepositoryPath
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import MANIFEST, Segment, check_task_name
from onetrunk.protocol.reading import parse_json, read_regular
from onetrunk.protocol.traffic_split import TrafficSplit

SCHEMA: Literal[2] = 2

Dtype = Literal["fp32", "int8", "fp16", "bf16"]
"""``int8``: products of 8-bit integers, for CPUs. ``fp16``: 16-bit floats, for GPUs. ``bf16``: an fp32
file that OpenVINO computes in 16-bit floats, for CPUs with units for these. Inputs and outputs stay fp32."""

DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Device = Literal["cpu", "gpu"]

# Names become paths, some of them to be removed: only a plain folder name is accepted.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]

TaskName = Annotated[str, AfterValidator(check_task_name)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1)]

# A version of a model takes less than a kB of it.
MAX_BYTES = 64 * 2**20

# These texts become comments of one line in a config: a second line would be parsed as part of the config.
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]+$")]


class Precision(BaseModel):
    """The dtypes in which a repository's models compute.

    Attributes:
        trunk: The dtype of the trunk's segments.
        heads: The dtype of the heads that are exported here. A head that was exported elsewhere stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: Dtype = "fp32"
    heads: Dtype = "fp32"

    @property
    def is_reduced(self) -> bool:
        """Whether any part computes in less than fp32."""
        return self != FP32

    def uses(self, dtype: Dtype) -> bool:
        """Return whether any part computes in this dtype."""
        return dtype in (self.trunk, self.heads)

    def of_segment(self, segment: Segment) -> Dtype:
        """Return a segment's dtype. The embeddings alone only look up and normalise: they stay fp32."""
        return "fp32" if segment.stop == 0 else self.trunk

    def __str__(self) -> str:
        return self.trunk if self.trunk == self.heads else f"trunk={self.trunk},heads={self.heads}"


FP32 = Precision()


@dataclass(frozen=True)
class GateRule:
    """What a task has to show before it is served in a reduced precision.

    It is in the manifest, so that deployments apply the same rule as the build.

    Attributes:
        on: Whether there is a gate.
        max_loss: The points of its metric that a task may lose at most.
        rows: The number of dev rows a task, a sample that is the same each time; 0 for all of them.
        runtime: Whose ONNX Runtime computes: the builder's own, or that of the Triton release that is built for.
    """

    on: bool = True
    max_loss: float = 0.5
    rows: int = 1000
    runtime: Literal["own", "release"] = "own"


DEFAULT_RULE = GateRule()


class GateResult(BaseModel):
    """A task's metric on its dev data, by the fp32 files and by the files that are served.

    Attributes:
        metric: The metric's name.
        rows: The number of rows on which it was measured.
        fp32: The score of the fp32 files, from 0 to 1.
        reduced: The score of the files that are served.
        key: A hash over everything that both were made from. A result with another key is about other files.
        data: A hash over the rows; empty if an earlier build did not record it.
        measured_by: The ONNX Runtime that it was measured by, with what else the answers depend on, such as the
            processor's unit for 8-bit integers; empty if an earlier build did not record it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    rows: int
    fp32: float
    reduced: float
    key: str
    data: str = ""
    measured_by: str = ""

    @property
    def loss(self) -> float:
        """The points lost; negative if the metric rose."""
        return 100 * (self.fp32 - self.reduced)

    def passes(self, max_loss: float) -> bool:
        """Return whether at most ``max_loss`` points were lost. A loss of NaN does not pass."""
        # The small number allows for the rounding of the subtraction.
        return self.loss <= max_loss + 1e-9


class Threads(BaseModel):
    """The number of threads in which a model computes.

    Attributes:
        count: The number of threads.
        reason: The measurement on which the choice rests, for a reader of the config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    reason: Line


class Placement(BaseModel):
    """Where the models of a repository run. The tokenizer is a Python model, and stays on the CPU.

    Attributes:
        device: The device of segments, heads and groups of heads.
        threads: Model -> its threads, if they were measured. Other models keep the default of their sort.
        measured: The command and the machine of the measurement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = "cpu"
    threads: Mapping[str, Threads] = {}
    measured: Line | None = None

    def without(self, model: str) -> Placement:
        """Return the placement without a model's measured threads."""
        return self.model_copy(update={"threads": {n: threads for n, threads in self.threads.items() if n != model}})


CPU = Placement()
"""On the CPU, with default threads."""


class VersionEntry(BaseModel):
    """A version of a model on disk.

    Attributes:
        source: A hash over everything that the version was made from.
        files: Path below the repository -> SHA-256.
        dtype: The dtype in which the version computes. The file calls it ``numbers``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: str
    files: dict[RepositoryPath, Sha256]
    dtype: Dtype = Field(default="fp32", validation_alias="numbers", serialization_alias="numbers")


class ModelEntry(BaseModel):
    """A model of the repository.

    Attributes:
        served: The version that the ensembles pin, or an ensemble's own; None if no ensemble uses the model.
        loaded: The versions that Triton should hold.
        candidate: The version of a head that is tried beside the served one.
        split: The share of the traffic that the candidate answers; None if it answers only who asks for it.
        previous: The version of a head that was served before, which is the target of a rollback.
        versions: Every version on disk. An ensemble has none: its version folder is empty.
        files: The files beside the version folders: path below the repository -> SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: Version | None
    loaded: tuple[Version, ...]
    candidate: Version | None = None
    split: TrafficSplit | None = None
    previous: Version | None = None
    versions: dict[Version, VersionEntry] = {}
    files: dict[RepositoryPath, Sha256]

    @property
    def all_files(self) -> dict[str, str]:
        """Path below the repository -> SHA-256, for all files of the model."""
        return {**{n: d for version in self.versions.values() for n, d in version.files.items()}, **self.files}


class Manifest(BaseModel):
    """``manifest.json``. Values that equal their default are not written.

    Attributes:
        schema_version: The version of this schema.
        onetrunk_version: The version of OneTrunk that wrote the manifest.
        trunk: The trunk's identity.
        triton_release: The Triton release that must be able to load the files.
        max_length: The longest text in tokens.
        buckets: The padded lengths in tokens.
        tasks: The tasks that are served.
        models: Name -> model, also of models that are on disk and not in use.
        precision: The dtypes of the trunk and of exported heads.
        gate: Task -> the gate's last result.
        gate_rule: The rule of the last build in a reduced precision, which deployments apply too.
        placement: Where the models run, and in how many threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    onetrunk_version: str
    trunk: str
    triton_release: str
    max_length: int
    buckets: tuple[int, ...]
    tasks: tuple[TaskName, ...]
    models: dict[ModelName, ModelEntry]
    precision: Precision = FP32
    gate: dict[str, GateResult] = {}
    gate_rule: GateRule = DEFAULT_RULE
    placement: Placement = CPU

    @model_validator(mode="after")
    def _files_are_the_models_own(self) -> Manifest:
        for name, entry in self.models.items():
            folders = {f"{name}/": entry.files, **{f"{name}/{n}/": v.files for n, v in entry.versions.items()}}
            for folder, files in folders.items():
                for file in files:
                    if not file.startswith(folder):
                        raise ValueError(f"{name}: found the file {file}, allowed are those in {folder}")
        return self

    def text(self) -> str:
        """Return the file's content."""
        values = self.model_dump(mode="json", by_alias=True)
        defaults = {"precision": FP32, "gate": {}, "gate_rule": DEFAULT_RULE, "placement": CPU}
        for name, default in defaults.items():
            if getattr(self, name) == default:
                del values[name]
        for model in values["models"].values():
            if model["split"] is None:
                del model["split"]
            for version in model["versions"].values():
                if version["numbers"] == "fp32":
                    del version["numbers"]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_manifest(repository: Path, check: Callable[[bytes], None] = lambda content: None) -> Manifest | None:
    """Read a repository's manifest; return None if nothing has been built yet.

    Args:
        repository: The repository's folder.
        check: Called with the file's content before it is parsed, such as to check its signature.

    Raises:
        UserError: The manifest is broken or of another schema, or the check refuses it.
    """
    path = repository / MANIFEST
    try:
        content = read_regular(path, max_bytes=MAX_BYTES, inside=repository)
        check(content)
        values = parse_json(content)
        if isinstance(values, dict) and values.get("schema_version") not in (None, SCHEMA):
            raise UserError(
                f"{path}: found schema {values['schema_version']}, but this build-repo writes schema {SCHEMA}: "
                "empty the folder, or name another one, and build again"
            )
        return Manifest.model_validate(values)
    except FileNotFoundError:
        return None
    except ValueError as error:
        reason = _first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is broken ({reason}): remove it to build the whole repository again") from error


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # about the whole manifest, which is no help to show
        return str(first["msg"])
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, found {first['input']!r:.80}"
