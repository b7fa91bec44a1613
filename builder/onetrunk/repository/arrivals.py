"""New versions of models: written aside, hashed, and entered into a manifest beside those that are there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onetrunk.export.precision import reduce_file
from onetrunk.files import sha256_file
from onetrunk.protocol import __version__
from onetrunk.protocol.manifest import DEFAULT_RULE, GateRule, Manifest, ModelEntry, VersionEntry
from onetrunk.protocol.names import ENSEMBLE_VERSION, MODEL_FILE, TOKENIZER, head_name
from onetrunk.repository.configs import parameters_of, pinned_version
from onetrunk.repository.contents import Contents
from onetrunk.repository.grouping import Group
from onetrunk.repository.publication import Publication
from onetrunk.repository.versions import PlannedModel

if TYPE_CHECKING:
    from onetrunk.export.parity import ServedTask
    from onetrunk.export.release import Release
    from onetrunk.nn.trunk import Trunk
    from onetrunk.protocol.manifest import GateResult
    from onetrunk.repository.plan import HeadSource

Versions = Mapping[str, dict[int, VersionEntry]]


def write_head(
    head: HeadSource,
    trunk: Trunk,
    release: Release,
    publication: Publication,
    model: PlannedModel,
    draft: Path | None = None,
) -> None:
    """Writes a head's version folder aside: its ONNX file, and the head.json that says what it is.

    Args:
        head: the head.
        trunk: its trunk.
        release: what must be able to load the file.
        publication: where.
        model: the version.
        draft: the fp32 file that one of a lower precision is made from.

    Raises:
        OneTrunkError: the file would not be one that the release can load.
    """
    from onetrunk.export.exported_head import ExportedHead
    from onetrunk.export.onnx_file import export_head

    file, record = (publication.path(name) for name in model.files)
    if isinstance(head, ExportedHead):
        head.check_file(release)
        shutil.copyfile(head.file, file)
    elif draft is not None:
        reduce_file(draft, file, model.numbers, thorough=False)
    else:
        export_head(head.head(trunk), head.spec, file, release)
    record.write_text(head.spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_group(group: Group, release: Release, publication: Publication, model: PlannedModel) -> None:
    """Writes a group's version folder aside, from the files of its heads, which are written already.

    Raises:
        UserError: the heads are too large for one file.
        OneTrunkError: the file would not be one that the release can load.
    """
    from onetrunk.export.merge import merge_heads

    file, record = (publication.path(name) for name in model.files)
    parts = {
        task: publication.current(f"{head_name(task)}/{member.version}/{MODEL_FILE}")
        for task, member in sorted(group.heads.items())
    }
    merge_heads(parts, group.tap, file, release)
    record.write_text(group.text(), encoding="utf-8")


def served_task(head: HeadSource, trunk: Trunk, file: Path) -> ServedTask:
    """A head's file and what it must answer as, for check_parity."""
    from onetrunk.export.exported_head import ExportedHead
    from onetrunk.export.onnx_file import ServedHead
    from onetrunk.export.parity import ServedTask

    module = None if isinstance(head, ExportedHead) else ServedHead(head.head(trunk), head.spec)
    return ServedTask(head_name(head.spec.task), file, head.spec, module)


def holds_text(path: Path, text: str) -> bool:
    """Whether a file is there and has exactly this content."""
    return path.is_file() and path.read_bytes() == text.encode()


def merged_versions(
    repository: Path, manifest: Manifest | None, arrived: Iterable[PlannedModel], publication: Publication
) -> dict[str, dict[int, VersionEntry]]:
    """Every version of every model that will be on disk: those of the manifest that still are, and what has arrived.

    Args:
        repository: its folder.
        manifest: what was there before.
        arrived: versions of which the fresh ones were written aside.
        publication: where.
    """
    found = {
        name: {number: entry for number, entry in model.versions.items() if (repository / name / str(number)).is_dir()}
        for name, model in (manifest.models if manifest else {}).items()
    }
    for model in arrived:
        if model.fresh:
            files = {name: sha256_file(publication.current(name)) for name in model.files}
            found.setdefault(model.name, {})[model.version] = VersionEntry(
                source=model.source, files=files, dtype=model.numbers
            )
    return found


def make_manifest(
    contents: Contents,
    release: str,
    versions: Versions,
    before: Manifest | None = None,
    idle: Mapping[str, str] | None = None,
    gate: Mapping[str, GateResult] | None = None,
    gate_rule: GateRule | None = None,
) -> Manifest:
    """The manifest of a repository.

    Args:
        contents: what it serves.
        release: the Triton release that can load it.
        versions: model -> its versions on disk.
        before: the manifest until now, which has the configs of models that are not in use any more.
        idle: texts of models that are not in use yet: path below the repository -> content.
        gate: what the gate found; None for what it found before.
        gate_rule: what it went by; None for what it went by before.
    """
    beside: dict[str, dict[str, str]] = {}
    for name, text in {**(idle or {}), **contents.texts}.items():
        beside.setdefault(name.split("/")[0], {})[name] = hashlib.sha256(text.encode()).hexdigest()

    def known(name: str) -> dict[str, str]:
        return before.models[name].files if before and name in before.models else {}

    in_use = {TOKENIZER: pinned_version(contents.tokenizer)}
    in_use |= {segment.name: version for segment, version in contents.segments.items()}
    in_use |= {group.group.name: group.version for group in contents.groups_in_use}
    in_use |= {config.name: ENSEMBLE_VERSION for config, _ in contents.ensembles}
    models = {
        name: ModelEntry(served=version, loaded=(version,), versions=versions.get(name, {}), files=beside[name])
        for name, version in in_use.items()
    }
    for task, head in contents.heads.items():
        name = head_name(task)
        models[name] = ModelEntry(
            served=head.served,
            loaded=head.loaded,
            candidate=head.candidate,
            previous=head.previous,
            versions=versions.get(name, {}),
            files=beside.get(name) or known(name),
        )
    for name, on_disk in versions.items():
        if name not in models and on_disk:
            files = beside.get(name) or known(name)
            models[name] = ModelEntry(served=None, loaded=(), versions=on_disk, files=files)
    settings = parameters_of(contents.tokenizer)
    return Manifest(
        onetrunk_version=__version__,
        trunk=contents.trunk,
        triton_release=release,
        max_length=int(settings["max_length"]),
        buckets=tuple(int(bucket) for bucket in settings["buckets"].split(",")),
        tasks=contents.tasks,
        models=models,
        precision=contents.precision,
        gate=dict(gate) if gate is not None else before.gate if before else {},
        gate_rule=gate_rule or (before.gate_rule if before else DEFAULT_RULE),
        placement=contents.placement,
    )
