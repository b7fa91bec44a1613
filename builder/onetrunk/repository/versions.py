"""Versions of models on disk: what each was made from, which are whole, and which number comes next.

Nothing here needs torch, so that a rollback does not load it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from onetrunk.export.release import IR_VERSION, OPSET
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON
from onetrunk.protocol.manifest import Dtype, Manifest, VersionEntry
from onetrunk.protocol.names import (
    HIDDEN_STATE,
    MODEL_FILE,
    TOKENIZER,
    Segment,
    cut_trunk,
    group_name,
    head_task,
    hidden_name,
    is_group,
    segment_named,
)
from onetrunk.protocol.reading import read_json, sha256_file
from onetrunk.tasks.head_spec import HeadSpec

# Incremented when the builder writes another ONNX file for the same weights: every model then gets a new version.
EXPORT_FORMAT = 4
# The same for the files that are made from an fp32 file in a lower precision.
REDUCTION_FORMAT = 1

GROUP_JSON = "group.json"
TOKENIZER_CONTENTS = ("model.py", "onetrunk_words.py", "tokenizer.json")
HEAD_CONTENTS = (MODEL_FILE, HEAD_JSON)
GROUP_CONTENTS = (MODEL_FILE, GROUP_JSON)
# A head takes less than a hundred bytes of it.
_MAX_GROUP_BYTES = 2**20


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model that a repository is to serve, on disk already or still to be made.

    Attributes:
        name: The model's name and folder.
        version: The version's number.
        fresh: Whether the version still has to be made. Otherwise it is on disk and whole.
        source: A hash over everything that the version is made from.
        contents: The names of the files in its version folder.
        dtype: The dtype in which it computes.
    """

    name: str
    version: int
    fresh: bool
    source: str
    contents: tuple[str, ...] = (MODEL_FILE,)
    dtype: Dtype = "fp32"

    @property
    def files(self) -> list[str]:
        """The version folder's files as paths below the repository."""
        return [f"{self.name}/{self.version}/{name}" for name in self.contents]


class Member(BaseModel):
    """A head in a group.

    Attributes:
        version: The version of the head's own model from which it was taken.
        outputs: The number of values that it returns for a text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    outputs: int


class GroupedSegment(BaseModel):
    """The limb of a group's heads, in the group itself.

    Attributes:
        name: The limb's segment.
        version: The version of the segment's own model from which it was taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(ge=1)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        segment = segment_named(name)
        if segment is None or not segment.limb:
            raise ValueError(f"{name} is no segment of a limb")
        return name

    @property
    def segment(self) -> Segment:
        """The segment."""
        segment = segment_named(self.name)
        assert segment is not None  # the name was checked
        return segment


class Group(BaseModel):
    """``group.json``: the heads of one tap that one model holds, and the limb below them if nothing else reads it.

    A group answers for a head as long as it holds the version that is served. After a deployment the head's own model
    answers, and after a rollback the group does again; a build with ``--group-heads`` makes the group anew.

    Attributes:
        schema_version: The version of this schema.
        tap: The tap of its heads.
        trunk: The trunk's identity.
        limb: The label of the limb that they stand on; empty for the trunk itself.
        segment: That limb, if the model computes it, too. None if it reads the limb's state.
        heads: Task -> its head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    tap: int
    trunk: str
    limb: str = ""
    segment: GroupedSegment | None = None
    heads: dict[str, Member]

    @model_validator(mode="after")
    def _check_segment(self) -> Group:
        if self.segment is not None and (self.segment.segment.limb, self.segment.segment.stop) != (self.limb, self.tap):
            raise ValueError(f"{self.segment.name} is not the limb of heads on {hidden_name(self.tap, self.limb)}")
        return self

    @property
    def state(self) -> str:
        """The tensor of the hidden state that the model reads: its heads' tap, or that below the limb in it."""
        return hidden_name(self.tap, self.limb) if self.segment is None else hidden_name(self.segment.segment.start)

    @property
    def input(self) -> str:
        """The model's input for that state: a head's, or a limb's."""
        return HIDDEN_STATE if self.segment is None else self.state

    @property
    def name(self) -> str:
        """The model's name."""
        return group_name(self.tap, self.limb)

    def holds(self, task: str, version: int | None) -> bool:
        """Return whether the group holds this version of the task's head, and so answers for it."""
        return task in self.heads and self.heads[task].version == version

    def text(self) -> str:
        """Return the file's content."""
        unused = {name for name in ("limb", "segment") if not getattr(self, name)}
        return self.model_dump_json(indent=2, exclude=unused) + "\n"


def read_group(folder: Path) -> Group:
    """Read the ``group.json`` of a version folder.

    Raises:
        UserError: The file is missing or broken.
    """
    path = folder / GROUP_JSON
    try:
        return Group.model_validate(read_json(path, max_bytes=_MAX_GROUP_BYTES, inside=folder))
    except (OSError, UserError, ValueError) as error:
        raise UserError(f"{path} is missing or broken ({str(error).splitlines()[0]}): run build-repo again") from error


def plan_version(
    repository: Path, name: str, source: str, manifest: Manifest | None, dtype: Dtype = "fp32"
) -> ModelVersion:
    """Return the newest whole version on disk that was made from a source, or else a fresh one.

    Args:
        repository: The repository's folder.
        name: The model's name.
        source: A hash over everything that the version is made from.
        manifest: The repository's manifest; None if nothing has been built yet.
        dtype: The dtype in which the version computes.
    """
    contents = _contents_of(name)
    entries = manifest.models[name].versions if manifest and name in manifest.models else {}
    for version, entry in sorted(entries.items(), reverse=True):
        if entry.source == source and is_whole(repository, entry):
            return ModelVersion(name, version, False, source, contents, dtype)
    # A server may hold any version on disk, so none is overwritten: a fresh version gets the next number.
    taken = [int(path.name) for path in (repository / name).glob("*") if path.name.isdecimal()]
    task = head_task(name)
    # A group may hold a head whose own folder was pruned: another head must not get that version's number.
    taken += _grouped_versions(repository, task) if task is not None else []
    return ModelVersion(name, max(taken, default=0) + 1, True, source, contents, dtype)


def is_whole(repository: Path, entry: VersionEntry) -> bool:
    """Return whether all files of a version are on disk as they were written."""
    return bool(entry.files) and all(_has_digest(repository / path, digest) for path, digest in entry.files.items())


def segments_for(specs: Iterable[HeadSpec], taps: Collection[int] = ()) -> list[Segment]:
    """Return the segments that heads need, lowest first: the trunk cut at each tap in use, and the limbs.

    Args:
        specs: The heads.
        taps: More taps at which to cut the trunk.
    """
    specs = list(specs)
    limbs = {spec.limb_id.segment for spec in specs if spec.limb_id is not None}
    return sorted([*cut_trunk({*taps, *(spec.trunk_tap for spec in specs)}), *limbs])


def segment_source(segment: Segment, trunk: str, dtype: Dtype = "fp32") -> str:
    """Return a hash over everything that a segment's file is made from."""
    limb = (segment.limb,) if segment.limb else ()
    return source_hash(
        EXPORT_FORMAT, OPSET, IR_VERSION, trunk, segment.start, segment.stop, *limb, *reduction_source(dtype)
    )


def reduction_source(dtype: Dtype) -> tuple[str | int, ...]:
    """Return what a file is made from besides its fp32 file; nothing for the fp32 file itself."""
    return () if dtype == "fp32" else (dtype, REDUCTION_FORMAT)


def source_hash(*parts: str | int) -> str:
    """Return one hash over the parts that something is made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _contents_of(model: str) -> tuple[str, ...]:
    if model == TOKENIZER:
        return TOKENIZER_CONTENTS
    if is_group(model):
        return GROUP_CONTENTS
    return (MODEL_FILE,) if head_task(model) is None else HEAD_CONTENTS


def _grouped_versions(repository: Path, task: str) -> list[int]:
    """Return the versions of a task's head that groups on disk hold.

    A group whose record is broken is skipped: it answers for no task, so no head can be mistaken for one of its own.
    """
    versions = []
    for path in repository.glob(f"*/*/{GROUP_JSON}"):
        with contextlib.suppress(UserError):
            group = read_group(path.parent)
            versions += [group.heads[task].version] if task in group.heads else []
    return versions


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
