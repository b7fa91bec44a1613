"""What a build is asked for, and the state that it comes to. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from onetrunk.export.exported_head import ExportedHead
from onetrunk.export.merge import fits_group
from onetrunk.export.release import DEFAULT_RELEASE, get_release
from onetrunk.export.sessions import check_openvino
from onetrunk.machine import has_matrix_units
from onetrunk.nn.embedding import EmbeddingTap
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import LongTexts
from onetrunk.protocol.manifest import FP32, Device, Manifest, Placement, Precision
from onetrunk.protocol.names import TOKENIZER, Segment, head_name, segment_named
from onetrunk.protocol.reading import sha256_file
from onetrunk.repository.artifacts import tokenizer_files
from onetrunk.repository.buckets import BucketRequest, Buckets, rows_of_batch
from onetrunk.repository.configs import tokenizer_config
from onetrunk.repository.gate_settings import DEFAULT_GATE, GateSettings
from onetrunk.repository.heads import HeadSource, head_dtype, head_source
from onetrunk.repository.state import GroupVersion, HeadVersion, HeadVersions, RepositoryState
from onetrunk.repository.tuning import TuningObjective
from onetrunk.repository.versions import (
    EXPORT_FORMAT,
    Group,
    GroupedSegment,
    Member,
    ModelVersion,
    is_whole,
    plan_version,
    segment_source,
    segments_for,
    source_hash,
)
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

# An ONNX file is a protobuf message, whose size is a signed number of 32 bits. Some of it is for the graph.
MAX_ONNX_BYTES = 2**31 - 2**24


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The repository to build.

    Attributes:
        output: The repository's folder. It is created if it does not exist, and brought up to date if it does.
        heads: The folder of bundles.
        tasks: The tasks to serve, and no others. None serves every bundle in ``heads``.
        embed: The tap of which the task ``embedding`` is the mean state; None serves no such task, unless a bundle is.
        embed_long_texts: What that task reads of a text longer than ``max_length``: its beginning, or windows.
        trunk: A folder, a hub id, or None for the default trunk; see ``onetrunk.nn.trunk.load_trunk``.
        limbs: The folder of the limbs on which heads stand; see ``onetrunk.tasks.head_spec.limbs_of``.
        max_length: The longest text in tokens, and the last bucket. Longer texts are truncated.
        buckets: The padded lengths, or the texts from which to choose them. By default 16, 32, 64, ...
        max_batch_tokens: The most tokens of a batch, padding included, from which follows how many texts it may have;
            see `rows_of_batch`.
        triton_release: The Triton release that must be able to load the files, such as ``24.10``.
        group_heads: Whether heads that share a tap are served by one model.
        precision: The precision of the trunk and of the heads.
        gate: How much a task may lose by a reduced precision, and on which data that is measured.
        device: Where segments and heads run. The tokenizer always runs on the CPU.
        tune: The goal for which the models are measured on this machine and given threads. None keeps the defaults.
        sign: The file of the private key by which the manifest is signed; None for no signature.
        dry_run: Whether to report what would be done and write nothing.

    Raises:
        UserError: Two settings exclude each other, or the Triton release is unknown.
    """

    output: Path
    heads: Path = Path("heads")
    tasks: Sequence[str] | None = None
    embed: EmbeddingTap | None = None
    embed_long_texts: LongTexts = "cut"
    trunk: str | Path | None = None
    limbs: Path | None = None
    max_length: int = 128
    buckets: BucketRequest = field(default_factory=BucketRequest)
    max_batch_tokens: int | None = None
    triton_release: str = DEFAULT_RELEASE
    group_heads: bool = False
    precision: Precision = FP32
    gate: GateSettings = DEFAULT_GATE
    device: Device = "cpu"
    tune: TuningObjective | None = None
    sign: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        get_release(self.triton_release)
        if self.tune is not None and self.device != "cpu":
            raise UserError(
                f"--tune measures threads on the CPU, and --device {self.device} needs none: leave one of them out"
            )
        if self.tune is not None and self.dry_run:
            raise UserError("--tune measures the models that a build writes, and --dry-run writes none: leave one out")
        made_for_cpus = next((dtype for dtype in ("int8", "bf16") if self.precision.uses(dtype)), None)
        if self.device == "gpu" and made_for_cpus is not None:
            raise UserError(
                f"--precision {self.precision}: {made_for_cpus} is made for CPUs; give fp16 or fp32 with --device gpu"
            )
        if self.precision.uses("bf16") and has_matrix_units():
            check_openvino(f"--precision {self.precision}")


@dataclass(frozen=True)
class BuildPlan:
    """The repository to be.

    Attributes:
        state: Its state. What is measured and made by the build is still missing in it: the files of fresh versions and
            the gate's results.
        heads: Task -> where its head comes from.
        models: Name -> version, for every model with a version folder.
        removed: Folders of models that the repository no longer has.
    """

    state: RepositoryState
    heads: Mapping[str, HeadSource]
    models: Mapping[str, ModelVersion]
    removed: Sequence[str]


def plan_repository(
    request: BuildRequest, trunk: Trunk, heads: Mapping[str, HeadSource], buckets: Buckets, manifest: Manifest | None
) -> BuildPlan:
    """Compare a request with the manifest, and the manifest with the files on disk.

    A build starts from the manifest alone, not from the state on disk, so that it can repair a broken repository.

    Args:
        request: The repository to build.
        trunk: The trunk.
        heads: Task -> head to serve.
        buckets: The padded lengths.
        manifest: The manifest in the output folder; None if nothing has been built yet.

    Raises:
        UserError: A model would be larger than an ONNX file can be, or the trunk's family loses too much in int8.
    """
    repository, precision = request.output, request.precision
    if precision.trunk == "int8" and not trunk.encoder.fits_int8:
        raise UserError(
            f"--precision {precision}: the states of a trunk of family {trunk.encoder.family} lose too much in int8; "
            "give trunk=fp32,heads=int8, or fp16"
        )
    recorded = manifest.models if manifest else {}
    segments = segments_for([head.spec for head in heads.values()])
    _check_sizes(trunk, segments, heads)
    models = _plan_versions(repository, trunk, heads, segments, precision, manifest)
    groups = _plan_groups(trunk, heads, models, precision) if request.group_heads else []
    for group in groups:
        members = [
            f"{task} {member.version} {models[head_name(task)].source}" for task, member in sorted(group.heads.items())
        ]
        if group.segment is not None:
            name, version = group.segment.name, group.segment.version
            members.insert(0, f"{name} {version} {models[name].source}")
        source = source_hash(EXPORT_FORMAT, *((group.limb,) if group.limb else ()), group.tap, trunk.identity, *members)
        models[group.name] = plan_version(repository, group.name, source, manifest)
    state = RepositoryState(
        trunk=trunk.identity,
        width=trunk.width,
        triton_release=request.triton_release,
        tokenizer=tokenizer_config(
            buckets=buckets.lengths,
            vocab_size=trunk.vocab_size,
            pad_token_id=trunk.pad_token_id,
            version=models[TOKENIZER].version,
            token_types=trunk.reads_types,
            buckets_from=buckets.origin,
            max_batch_size=rows_of_batch(buckets.lengths[-1], request.max_batch_tokens),
        ),
        segments={segment: models[segment.name].version for segment in segments},
        heads={
            task: _head_versions(repository, head.spec, models[head_name(task)], manifest)
            for task, head in heads.items()
        },
        groups=tuple(GroupVersion(group, models[group.name].version) for group in groups),
        precision=precision,
        placement=_placement(request, manifest),
        on_disk={name: entry.versions for name, entry in recorded.items() if name in models},
    )
    ensembles = {config.name for config, _ in state.ensembles}
    removed = sorted(recorded.keys() - models.keys() - ensembles)
    return BuildPlan(state, heads, models, removed)


def _check_sizes(trunk: Trunk, segments: Sequence[Segment], heads: Mapping[str, HeadSource]) -> None:
    """Check, before anything is exported, that every model fits into an ONNX file. All are exported in fp32 first.

    Raises:
        UserError: One does not.
    """
    layers = [_bytes(layer) for layer in trunk.layers]
    # A limb's layers have the sizes of those that they are in place of.
    sizes = {
        segment.name: sum(layers[segment.start : segment.stop]) + _bytes(trunk.embeddings) * segment.reads_tokens
        for segment in segments
    }
    sizes |= {
        head_name(task): max(layers) * head.spec.layers
        for task, head in heads.items()
        if not isinstance(head, ExportedHead)
    }
    for name, size in sizes.items():
        if size > MAX_ONNX_BYTES:
            raise UserError(
                f"{name} would take {size / 1e9:.1f} GB, and an ONNX file holds at most {MAX_ONNX_BYTES / 1e9:.1f} GB: "
                "give heads on more taps, which cut the trunk into smaller models, or fewer layers a head, or take a "
                "smaller trunk"
            )


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _plan_versions(
    repository: Path,
    trunk: Trunk,
    heads: Mapping[str, HeadSource],
    segments: Sequence[Segment],
    precision: Precision,
    manifest: Manifest | None,
) -> dict[str, ModelVersion]:
    """Return the versions of tokenizer, segments and heads, by model."""
    tokenizer = source_hash(TOKENIZER, *(sha256_file(path) for path in tokenizer_files(trunk).values()))
    models = [plan_version(repository, TOKENIZER, tokenizer, manifest)]
    for segment in segments:
        dtype = precision.of_segment(segment)
        source = segment_source(segment, trunk.identity, dtype)
        models.append(plan_version(repository, segment.name, source, manifest, dtype))
    for task, head in heads.items():
        dtype = head_dtype(head, precision)
        models.append(plan_version(repository, head_name(task), head_source(head, dtype), manifest, dtype))
    return {model.name: model for model in models}


def _plan_groups(
    trunk: Trunk, heads: Mapping[str, HeadSource], models: Mapping[str, ModelVersion], precision: Precision
) -> list[Group]:
    """Return one group for every tap, of the trunk or of a limb, with two heads or more that can be grouped.

    If all heads on a limb are in its group, the group holds the limb as well: whoever asks one needs the other, and a
    model less is a hop less.

    A head with other operators than ours cannot. A head that answers for every token is not: its answers have another
    shape, and it costs as much as whole layers, beside which the hop that a group saves is nothing. An embedding is
    not either: a group computes all its heads whichever is asked, and nearly nobody asks an embedding.
    """
    by_tap: dict[tuple[int, str], dict[str, Member]] = {}
    apart = set()  # labels of limbs that other heads read, too
    for task, head in heads.items():
        kind, limb = get_kind(head.spec.kind), head.spec.limb_id
        # A file is computed in bf16 as a whole, and a head that was exported elsewhere is not.
        fits = not isinstance(head, ExportedHead) or (precision.heads != "bf16" and fits_group(head.file))
        if kind.has_weights and not kind.by_token and fits:
            outputs = kind.output.num_outputs(head.spec)
            where = head.spec.tap, limb.label if limb is not None else ""
            by_tap.setdefault(where, {})[task] = Member(version=models[head_name(task)].version, outputs=outputs)
        elif limb is not None:
            apart.add(limb.label)
    limbs = {segment.limb: model for model in models.values() if (segment := segment_named(model.name)) is not None}
    # In fp16 and bf16 a state within a file is not rounded as between two. In some families the difference is one of
    # fp32 too, which quantising the state may enlarge; they are those whose states do not fit int8.
    dtypes = {precision.trunk, precision.heads}
    holds_limb = dtypes == {"fp32"} or (dtypes <= {"fp32", "int8"} and trunk.encoder.fits_int8)
    groups = [
        Group(
            tap=tap,
            trunk=trunk.identity,
            limb=limb,
            segment=GroupedSegment(name=limbs[limb].name, version=limbs[limb].version)
            if holds_limb and limb and limb not in apart
            else None,
            heads=members,
        )
        for (tap, limb), members in by_tap.items()
        if len(members) > 1
    ]
    return sorted(groups, key=lambda group: group.name)  # as they are read back


def _head_versions(repository: Path, spec: HeadSpec, model: ModelVersion, manifest: Manifest | None) -> HeadVersions:
    versions = {model.version: HeadVersion(spec, model.dtype)}
    entry = manifest.models.get(model.name) if manifest else None
    if entry is None or entry.served != model.version or model.fresh:
        return HeadVersions(versions, served=model.version, loaded=(model.version,))
    # If the head does not change, the version before it stays loaded as a deployment left it.
    before = entry.previous
    if before in entry.versions and not is_whole(repository, entry.versions[before]):
        before = None
    loaded = tuple(version for version in entry.loaded if version in (model.version, before))
    return HeadVersions(versions, served=model.version, loaded=loaded, previous=before)


def _placement(request: BuildRequest, manifest: Manifest | None) -> Placement:
    # Threads that were measured before stay until they are measured again.
    if request.tune is not None and manifest is not None and manifest.placement.device == request.device:
        return manifest.placement
    return Placement(device=request.device)
