"""Versions of models: which are on disk and whole, and which number comes next. Known without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from onetrunk.export.release import IR_VERSION, OPSET
from onetrunk.files import sha256_file
from onetrunk.protocol.head_json import HEAD_JSON
from onetrunk.protocol.manifest import Dtype, Manifest, ModelEntry
from onetrunk.protocol.names import MODEL_FILE, TOKENIZER, Segment
from onetrunk.repository.grouping import GROUP_JSON, grouped_versions

# Raised by one when the builder writes another ONNX file for the same weights: every model then gets a new version.
EXPORT_FORMAT = 2
# The same for what is made of it in a lower precision.
REDUCTION_FORMAT = 1

TOKENIZER_CONTENTS = ("model.py", "tokenizer.json")
HEAD_CONTENTS = (MODEL_FILE, HEAD_JSON)
GROUP_CONTENTS = (MODEL_FILE, GROUP_JSON)


def source_hash(*parts: str | int) -> str:
    """Return one hash over the parts that something is made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedModel:
    """A part of the repository with a version folder of its own.

    Attributes:
        name: the model's folder.
        version: the version to be served.
        fresh: whether that version has to be made; otherwise it is on disk and whole.
        source: hash over everything that the version is made from.
        contents: what its version folder holds, by name.
        numbers: what it computes in.
    """

    name: str
    version: int
    fresh: bool
    source: str
    contents: tuple[str, ...] = (MODEL_FILE,)
    numbers: Dtype = "fp32"

    @property
    def files(self) -> list[str]:
        """The version folder's files as paths below the repository."""
        return [f"{self.name}/{self.version}/{name}" for name in self.contents]


def segment_source(segment: Segment, trunk: str, numbers: Dtype = "fp32") -> str:
    """Hash over all that a segment's file is made from."""
    return source_hash(EXPORT_FORMAT, OPSET, IR_VERSION, trunk, segment.start, segment.stop, *reduction_source(numbers))


def reduction_source(numbers: Dtype) -> tuple[str | int, ...]:
    """What a file is made from beside its fp32 file; nothing for that one itself, as before there were others."""
    return () if numbers == "fp32" else (numbers, REDUCTION_FORMAT)


def plan_model(
    repository: Path, name: str, source: str, manifest: Manifest | None, numbers: Dtype = "fp32"
) -> PlannedModel:
    """The newest whole version on disk that was made from this source; else a fresh one."""
    contents = _contents_of(name)
    entry = manifest.models.get(name) if manifest else None
    for version in sorted(entry.versions if entry else (), reverse=True):
        if entry and entry.versions[version].source == source and is_whole(repository, entry, version):
            return PlannedModel(name, version, False, source, contents, numbers)
    # Never written over: a version that a server may hold keeps its files, so what follows is a new one.
    versions = [int(path.name) for path in (repository / name).glob("*") if path.name.isdecimal()]
    # A group may hold a head whose own folder was pruned: a version of another head must not have that number.
    versions += grouped_versions(repository, name.removeprefix("head_")) if name.startswith("head_") else []
    return PlannedModel(name, max(versions, default=0) + 1, True, source, contents, numbers)


def is_whole(repository: Path, entry: ModelEntry, version: int) -> bool:
    """Whether all files of a version are there as they were written."""
    files = entry.versions[version].files
    return bool(files) and all(_holds(repository / path, digest) for path, digest in files.items())


def _contents_of(model: str) -> tuple[str, ...]:
    if model == TOKENIZER:
        return TOKENIZER_CONTENTS
    if model.startswith("heads_"):
        return GROUP_CONTENTS
    return HEAD_CONTENTS if model.startswith("head_") else (MODEL_FILE,)


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
