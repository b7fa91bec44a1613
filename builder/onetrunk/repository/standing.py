"""What stands in a repository on disk, read back as the value that its texts were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Manifest, ModelEntry, read_manifest
from onetrunk.protocol.names import TOKENIZER, segment_named
from onetrunk.repository.arrivals import holds_text
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.contents import Contents, GroupState, HeadState
from onetrunk.repository.grouping import read_group
from onetrunk.tasks.head_spec import HeadSpec, read_spec


@dataclass(frozen=True)
class Standing:
    """A repository on disk.

    Attributes:
        manifest: what it was built from.
        contents: what it serves.
        notes: what a user should know of files that are left out.
    """

    manifest: Manifest
    contents: Contents
    notes: tuple[str, ...] = ()


def required_manifest(repository: Path) -> Manifest:
    """The manifest of a repository that is there. Raises UserError where there is none, or it is broken."""
    manifest = read_manifest(repository)
    if manifest is None:
        raise UserError(f"{repository}: no repository here: run build-repo first, or give --repository")
    return manifest


def read_standing(repository: Path) -> Standing:
    """Reads a repository that build-repo wrote.

    Raises:
        UserError: there is none, or one of its files in use is broken.
    """
    manifest = required_manifest(repository)
    heads = {
        name.removeprefix("head_"): _read_head(repository, name, entry, manifest.trunk)
        for name, entry in manifest.models.items()
        if name.startswith("head_")
    }
    segments = {}
    for name, entry in manifest.models.items():
        segment = segment_named(name)
        if segment is not None and entry.served is not None:
            segments[segment] = entry.served
    widths = {spec.width for head in heads.values() for spec in head.specs.values()}
    if len(widths) != 1:
        raise UserError(f"{repository}: its heads do not stand on one trunk: run build-repo again")
    tokenizer = _read_tokenizer(repository)
    cut = dict(sorted(segments.items()))
    notes: list[str] = []
    groups = tuple(_read_groups(repository, manifest, notes))
    contents = Contents(
        manifest.trunk, widths.pop(), tokenizer, cut, heads, groups, manifest.precision, manifest.placement
    )
    return Standing(manifest, contents, tuple(notes))


def changed_texts(repository: Path, contents: Contents) -> list[str]:
    """The configs and label files that are not as they were written, as paths below the repository."""
    return [name for name, text in contents.texts.items() if not holds_text(repository / name, text)]


def _read_head(repository: Path, name: str, entry: ModelEntry, trunk: str) -> HeadState:
    specs: dict[int, HeadSpec] = {}
    in_use = (entry.served, entry.candidate)
    for version in sorted(entry.versions):
        try:
            spec = read_spec(repository / name / str(version), any_folder=True)
        except UserError:
            # One that nobody is served from is not worth stopping for: it cannot be gone back to, that is all.
            if version in in_use:
                raise
        else:
            # Of another trunk, after a build on this one: it cannot be gone back to either.
            if version in in_use or spec.trunk == trunk:
                specs[version] = spec
    loaded = tuple(version for version in entry.loaded if version in specs)
    numbers = {version: made.dtype for version, made in entry.versions.items() if made.dtype != "fp32"}
    return HeadState(specs, entry.served, loaded, entry.candidate, entry.previous, numbers)


def _read_groups(repository: Path, manifest: Manifest, notes: list[str]) -> Iterator[GroupState]:
    for name, entry in sorted(manifest.models.items()):
        if name.startswith("heads_") and entry.versions:
            # One that answers for nobody just now may do so again after a rollback.
            version = entry.served or max(entry.versions)
            try:
                group = read_group(repository / name / str(version))
            except UserError as error:
                if entry.served is not None:
                    raise
                notes.append(f"{name} answers for no task and is left out: {error}")
                continue
            if group.trunk == manifest.trunk and group.name == name:
                yield GroupState(group, version)


def _read_tokenizer(repository: Path) -> pb.ModelConfig:
    path = repository / TOKENIZER / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        int(parameters_of(config)["max_length"])
    except (OSError, UnicodeDecodeError, text_format.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or broken ({error}): run build-repo again") from error
    return config
