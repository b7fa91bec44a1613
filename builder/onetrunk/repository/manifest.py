"""What a repository was built from: so that a rebuild knows what it need not write again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from onetrunk.export.precision import FP32, Numbers, Precision
from onetrunk.protocol.errors import UserError
from onetrunk.repository.gate_result import GateResult
from onetrunk.repository.gate_settings import DEFAULT_RULE, GateRule
from onetrunk.repository.placement import CPU, Placement

MANIFEST = "manifest.json"
SCHEMA: Literal[2] = 2

# A manifest's names become paths, some of them to be removed: nothing but a plain folder name gets in.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class VersionEntry(BaseModel):
    """One version of a model, on disk.

    Attributes:
        source: hash over everything that it was made from.
        files: path below the repository -> SHA-256.
        numbers: what it computes in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    files: dict[str, str]
    numbers: Numbers = "fp32"


class ModelEntry(BaseModel):
    """One model of the repository.

    Attributes:
        served: the version that the ensembles pin, an ensemble's own; None where no ensemble names the model any more.
        loaded: the versions that Triton is to hold.
        candidate: of a head, the version that is tried beside the served one.
        previous: of a head, the version that was served before, to which a rollback goes.
        versions: every version on disk, but for an ensemble, which has nothing in its version folder.
        files: what lies beside the version folders: path below the repository -> SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: int | None
    loaded: tuple[int, ...]
    candidate: int | None = None
    previous: int | None = None
    versions: dict[int, VersionEntry] = {}
    files: dict[str, str]

    @property
    def all_files(self) -> dict[str, str]:
        """Path below the repository -> SHA-256, of all its files."""
        return {**{n: d for version in self.versions.values() for n, d in version.files.items()}, **self.files}


class Manifest(BaseModel):
    """``manifest.json``.

    It holds no time and no path of the machine, so that equal repositories have equal manifests; what was measured is
    in it where somebody asked for that. What is as it is by default is left out.

    Attributes:
        precision: what the trunk computes in, and heads that are exported.
        gate: task -> what the last gate found.
        gate_rule: what the gate of the last build in a reduced precision went by, and those of deployments go by.
        placement: where the models run, and with how many threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    onetrunk_version: str
    trunk: str
    triton_release: str
    max_length: int
    buckets: tuple[int, ...]
    tasks: tuple[str, ...]
    models: dict[ModelName, ModelEntry]
    precision: Precision = FP32
    gate: dict[str, GateResult] = {}
    gate_rule: GateRule = DEFAULT_RULE
    placement: Placement = CPU

    def text(self) -> str:
        """The file's content."""
        values = self.model_dump(mode="json")
        if not self.precision.is_reduced:
            del values["precision"]
        if not self.gate:
            del values["gate"]
        if self.gate_rule == DEFAULT_RULE:
            del values["gate_rule"]
        if self.placement == CPU:
            del values["placement"]
        for model in values["models"].values():
            for version in model["versions"].values():
                if version["numbers"] == "fp32":
                    del version["numbers"]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_manifest(repository: Path) -> Manifest | None:
    """The repository's manifest; None where nothing has been built yet.

    Raises:
        UserError: it is there, but broken or of another schema.
    """
    path = repository / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict) and values.get("schema_version") not in (None, SCHEMA):
            raise UserError(
                f"{path}: schema {values['schema_version']}, and this build-repo writes {SCHEMA}: "
                "empty the folder, or give another one, and build anew"
            )
        return Manifest.model_validate(values)
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is broken ({reason}): remove it to build the whole repository anew") from error


def source_hash(*parts: str | int) -> str:
    """One hash over the parts that something is made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
