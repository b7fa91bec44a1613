"""What a repository will hold, and what of it is there already. Nothing is written here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrunk.export.exported_head import HEAD_TOML, ExportedHead, read_exported_head
from onetrunk.export.merge import fits_group
from onetrunk.export.release import IR_VERSION, OPSET
from onetrunk.files import sha256_file
from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON
from onetrunk.protocol.manifest import CPU, FP32, Dtype, Manifest, Placement, Precision
from onetrunk.protocol.names import TOKENIZER, Segment, cut_trunk, head_name
from onetrunk.repository.configs import tokenizer_config
from onetrunk.repository.contents import Contents, GroupState, HeadState
from onetrunk.repository.grouping import Group, Member
from onetrunk.repository.versions import (
    EXPORT_FORMAT,
    TOKENIZER_CONTENTS,
    PlannedModel,
    is_whole,
    plan_model,
    reduction_source,
    segment_source,
    source_hash,
)
from onetrunk.tasks.head_spec import HeadSpec, find_bundles
from onetrunk.tasks.kinds import get_kind

HeadSource = Bundle | ExportedHead
"""Where a head comes from: trained here, or exported elsewhere."""


@dataclass(frozen=True)
class RepositoryPlan:
    """The repository to be.

    Attributes:
        buckets: padded lengths in tokens.
        heads: where the heads to be served come from, by task.
        groups: the models that hold several heads of one tap.
        segments: the trunk's segments, lowest first.
        models: every part with a version folder, by name.
        contents: what the configs are made from.
        removed: folders of models that have gone.
    """

    buckets: tuple[int, ...]
    heads: Mapping[str, HeadSource]
    groups: Sequence[Group]
    segments: Sequence[Segment]
    models: Mapping[str, PlannedModel]
    contents: Contents
    removed: Sequence[str]


def find_heads(heads: Path) -> dict[str, Path]:
    """The folders of all heads under ``heads``, by name: bundles, and heads that were exported elsewhere."""
    exported = [path.parent for path in heads.glob(f"*/{HEAD_TOML}") if not path.parent.name.startswith(".")]
    return {folder.name: folder for folder in sorted([*find_bundles(heads), *exported])}


def load_head(folder: Path, trunk: Trunk, *, any_folder: bool = False) -> HeadSource:
    """Reads a bundle, or a head that was exported elsewhere, and checks that it stands on this trunk.

    Raises:
        UserError: it is broken, stands on another trunk, or is of neither form.
    """
    head: HeadSource
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not folder.name:
        folder = folder.resolve()  # as for `.`: the folder's name says something
    if not (folder / HEAD_TOML).exists() and not (folder / HEAD_JSON).exists():
        raise UserError(
            f"{folder}: neither a bundle ({HEAD_JSON}) nor a head that was exported elsewhere ({HEAD_TOML}) is in it"
        )
    if (folder / HEAD_TOML).exists():
        head = read_exported_head(folder, trunk, any_folder=any_folder)
    else:
        head = load_bundle(folder, any_folder=any_folder)
    head.check_trunk(trunk)
    return head


def select_heads(heads: Path, tasks: Sequence[str] | None, trunk: Trunk) -> dict[str, HeadSource]:
    """The heads of these tasks; of all tasks for None.

    Raises:
        UserError: there is no such head, or it is broken.
    """
    folders = find_heads(heads)
    if not folders:
        raise UserError(f"{heads}: no head in it; train one with train-head, or give --heads")
    for task in tasks or ():
        if task not in folders:
            close = difflib.get_close_matches(task, folders, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"no head for task {task!r} in {heads}; there are: {', '.join(folders)}{hint}")
    return {task: load_head(folders[task], trunk) for task in sorted(tasks or folders)}


def plan_repository(
    repository: Path,
    trunk: Trunk,
    heads: Mapping[str, HeadSource],
    buckets: tuple[int, ...],
    manifest: Manifest | None,
    buckets_from: str | None = None,
    *,
    group_heads: bool = False,
    precision: Precision = FP32,
    placement: Placement = CPU,
) -> RepositoryPlan:
    """Compares what is wanted with what the manifest says is there, and with the files themselves."""
    segments = cut_trunk({head.spec.tap for head in heads.values()})
    sources = {TOKENIZER: source_hash(TOKENIZER, *(sha256_file(path) for path in tokenizer_files(trunk).values()))}
    numbers = {segment.name: precision.of_segment(segment) for segment in segments}
    numbers |= {head_name(task): numbers_of(head, precision) for task, head in heads.items()}
    sources |= {segment.name: segment_source(segment, trunk.identity, numbers[segment.name]) for segment in segments}
    sources |= {head_name(task): head_source(head, numbers[head_name(task)]) for task, head in heads.items()}
    models = {
        name: plan_model(repository, name, source, manifest, numbers.get(name, "fp32"))
        for name, source in sources.items()
    }
    groups = plan_groups(trunk.identity, heads, models) if group_heads else []
    for group in groups:
        members = [
            f"{task} {member.version} {sources[head_name(task)]}" for task, member in sorted(group.heads.items())
        ]
        source = source_hash(EXPORT_FORMAT, group.tap, trunk.identity, *members)
        models[group.name] = plan_model(repository, group.name, source, manifest)
    tokenizer = tokenizer_config(
        buckets=buckets,
        vocab_size=trunk.vocab_size,
        pad_token_id=trunk.pad_token_id,
        version=models[TOKENIZER].version,
        buckets_from=buckets_from,
    )
    contents = Contents(
        trunk=trunk.identity,
        width=trunk.width,
        tokenizer=tokenizer,
        segments={segment: models[segment.name].version for segment in segments},
        heads={
            task: _head_state(repository, head.spec, models[head_name(task)], manifest) for task, head in heads.items()
        },
        groups=tuple(GroupState(group, models[group.name].version) for group in groups),
        precision=precision,
        placement=placement,
    )
    ensembles = {config.name for config, _ in contents.ensembles}
    gone = sorted(set(manifest.models if manifest else ()) - set(models) - ensembles)
    return RepositoryPlan(buckets, heads, groups, segments, models, contents, gone)


def plan_groups(trunk: str, heads: Mapping[str, HeadSource], models: Mapping[str, PlannedModel]) -> list[Group]:
    """For every tap with two heads or more, one group of them.

    A head of other operators than ours stays by itself, and one that answers for every token: its answers are of
    another form, and its price is that of whole layers, beside which a hop is nothing.
    """
    by_tap: dict[int, dict[str, Member]] = {}
    for task, head in heads.items():
        kind = get_kind(head.spec.kind)
        if not kind.by_token and (not isinstance(head, ExportedHead) or fits_group(head.file)):
            outputs = kind.outputs(head.spec)
            by_tap.setdefault(head.spec.tap, {})[task] = Member(
                version=models[head_name(task)].version, outputs=outputs
            )
    return [Group(tap=tap, trunk=trunk, heads=members) for tap, members in sorted(by_tap.items()) if len(members) > 1]


def numbers_of(head: HeadSource, precision: Precision) -> Dtype:
    """What a head's file computes in. One that was exported elsewhere is taken as it is."""
    return "fp32" if isinstance(head, ExportedHead) else precision.heads


def head_source(head: HeadSource, numbers: Dtype = "fp32") -> str:
    """Hash over all that a head's file and its config are made from."""
    if isinstance(head, ExportedHead):
        return source_hash("exported", _served_spec(head.spec), head.spec.trunk, sha256_file(head.file))
    weights = sha256_file(head.folder / "head.safetensors")
    return source_hash(
        EXPORT_FORMAT, OPSET, IR_VERSION, head.spec.trunk, _served_spec(head.spec), weights, *reduction_source(numbers)
    )


def _served_spec(spec: HeadSpec) -> str:
    """What is served depends on, beside the weights: a retrained head with equal ones is the same head."""
    fields = {"task", "kind", "form", "labels", "range", "tap", "layers", "query", "metric"}
    # Heads that have none of these are known by what they were known by before there were any.
    fields |= {name for name in ("options", "fitted") if getattr(spec, name)}
    return spec.model_dump_json(include=fields)


def _head_state(repository: Path, spec: HeadSpec, model: PlannedModel, manifest: Manifest | None) -> HeadState:
    entry = manifest.models.get(model.name) if manifest else None
    numbers = {} if model.numbers == "fp32" else {model.version: model.numbers}
    if entry is None or entry.served != model.version or model.fresh:
        return HeadState({model.version: spec}, model.version, (model.version,), numbers=numbers)
    # A build that changes nothing about a head leaves the version before it loaded, if a deployment did.
    before = entry.previous
    if before in entry.versions and not is_whole(repository, entry, before):
        before = None
    loaded = (version for version in entry.loaded if version in (model.version, before))
    return HeadState({model.version: spec}, model.version, tuple(loaded), previous=before, numbers=numbers)


def tokenizer_files(trunk: Trunk) -> dict[str, Path]:
    """What the tokenizer's version folder holds: name -> where it is copied from."""
    model = Path(__file__).parent / "tokenizer" / "model.py"
    return dict(zip(TOKENIZER_CONTENTS, (model, trunk.folder / "tokenizer.json"), strict=True))
