"""Building a repository: plan, export what is missing, check all of it, publish the difference."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from onetrunk.export.release import DEFAULT_RELEASE, Release, get_release
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import (
    CPU,
    FP32,
    Device,
    GateResult,
    Manifest,
    Placement,
    Precision,
    read_manifest,
)
from onetrunk.protocol.names import MANIFEST, TOKENIZER, head_name
from onetrunk.repository.arrivals import holds_text, make_manifest, merged_versions, write_group
from onetrunk.repository.exports import Exports
from onetrunk.repository.gate import judge, measure_losses
from onetrunk.repository.gate_plan import GatePlan, plan_gate
from onetrunk.repository.gate_settings import DEFAULT_GATE, GateSettings
from onetrunk.repository.padding import Buckets, BucketWish
from onetrunk.repository.plan import RepositoryPlan, plan_repository, select_heads, tokenizer_files
from onetrunk.repository.publication import Publication, finish_earlier, locked
from onetrunk.repository.thread_choice import Goal
from onetrunk.repository.tuning import Tuning, tune_repository


@dataclass(frozen=True)
class BuildReport:
    """What a build did, or with ``dry_run`` would do.

    Attributes:
        output: the repository.
        tasks: the tasks that it serves.
        buckets: padded lengths in tokens, and how they suit the texts that they were chosen from.
        models: model -> ``version N, new``, ``version N, kept`` or ``removed``.
        written: files that were written, below the repository.
        removed: folders of models that have gone.
        differences: model -> greatest difference from torch; empty where nothing had to be checked.
        precision: what trunk and heads compute in.
        gate: task -> what the gate found, now or for the same files before; empty where there was none to pass.
        gated: whether every task of reduced precision passed the gate.
        finished_earlier: whether an earlier publication, cut off in its moves, was completed first.
        seconds: time taken.
        placement: where the models run, and with how many threads.
        notes: what a user should know of what was asked for and measured.
    """

    output: Path
    tasks: tuple[str, ...]
    buckets: Buckets
    models: dict[str, str]
    written: tuple[str, ...]
    removed: tuple[str, ...]
    differences: dict[str, float] = field(default_factory=dict)
    precision: Precision = FP32
    gate: Mapping[str, GateResult] = field(default_factory=dict)
    gated: bool = True
    finished_earlier: bool = False
    seconds: float = 0.0
    placement: Placement = CPU
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, written or removed."""
        return bool(self.written or self.removed)


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The repository to build.

    Attributes:
        output: The repository's folder. It is created if it does not exist, and brought up to date if it does.
        heads: The folder of bundles.
        tasks: The tasks to serve, and no others. None serves every bundle in ``heads``.
        trunk: A folder, a hub id, or None for the default trunk; see ``onetrunk.nn.trunk.load_trunk``.
        max_length: The longest text in tokens, and the last bucket. Longer texts are truncated.
        buckets: The padded lengths, or the texts from which to choose them. None uses 16, 32, 64, ...
        triton_release: The Triton release that must be able to load the files, such as ``24.10``.
        group_heads: Whether heads that share a tap are served by one model.
        precision: The precision of the trunk and of the heads.
        gate: How much a task may lose by a reduced precision, and on which data that is measured.
        device: Where segments and heads run. The tokenizer always runs on the CPU.
        tune: The goal for which the models are measured on this machine and given threads. None keeps the defaults.
        dry_run: Whether to report what would be done and write nothing.

    Raises:
        UserError: Two settings exclude each other, or the Triton release is unknown.
    """

    output: Path
    heads: Path = Path("heads")
    tasks: Sequence[str] | None = None
    trunk: str | Path | None = None
    max_length: int = 128
    buckets: BucketWish = field(default_factory=BucketWish)
    triton_release: str = DEFAULT_RELEASE
    group_heads: bool = False
    precision: Precision = FP32
    gate: GateSettings = DEFAULT_GATE
    device: Device = "cpu"
    tune: Goal | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        get_release(self.triton_release)
        if self.tune is not None and self.device != "cpu":
            raise UserError(
                f"--tune measures threads on the CPU, and --device {self.device} needs none: leave one of them out"
            )
        if self.tune is not None and self.dry_run:
            raise UserError("--tune measures the models that a build writes, and --dry-run writes none: leave one out")
        if self.device == "gpu" and "int8" in (self.precision.trunk, self.precision.heads):
            raise UserError(f"--precision {self.precision}: int8 is made for CPUs; give fp16 or fp32 with --device gpu")


def build_repository(request: BuildRequest, progress: ProgressCallback = silent) -> BuildReport:
    """Build a Triton model repository from bundles, or bring an existing one up to date.

    Args:
        request: The repository to build.
        progress: Called as the build proceeds; see ``onetrunk.progress.ProgressCallback``.

    Returns:
        What was done, or with ``dry_run`` would be done.

    Raises:
        UserError: A bundle or the trunk cannot be used, or a task has no dev data on which to judge a precision.
        GateError: A task loses too much by the precision. Nothing was published.
        OneTrunkError: An export or a check failed. Nothing was published.
    """
    started = time.monotonic()
    output, gate = request.output, request.gate
    release = get_release(request.triton_release)
    progress("loading the trunk", 0, 1)
    trunk = load_trunk(request.trunk)
    heads = select_heads(request.heads, request.tasks, trunk)
    buckets = request.buckets.settle(trunk, request.max_length, list(heads), progress)
    with nullcontext() if request.dry_run else locked(output):
        finished = not request.dry_run and finish_earlier(output)
        manifest = read_manifest(output)
        _check_candidates(output, manifest)
        plan = plan_repository(
            output,
            trunk,
            heads,
            buckets.lengths,
            manifest,
            buckets.origin,
            group_heads=request.group_heads,
            precision=request.precision,
            placement=_placement(request.device, request.tune, manifest),
        )
        gating = plan_gate(plan, manifest, gate)
        if gate.on:
            # Known results are judged again: they may come from a build that allowed a greater loss.
            judge(gating.known, gate.max_loss)
        texts = [name for name, text in plan.contents.texts.items() if not holds_text(output / name, text)]
        written = [file for model in plan.models.values() if model.fresh for file in model.files] + texts
        settings = manifest and (manifest.triton_release, manifest.gate_rule)
        changed = bool(written or plan.removed or gating.open) or settings != (release.name, gating.rule)
        differences: dict[str, float] = {}
        results = dict(gating.known)
        if changed and not request.dry_run:
            differences, results = _publish(output, plan, gating, trunk, release, manifest, texts, progress)
        tuning = Tuning(plan.contents.placement)
        if request.tune is not None:
            tuning = tune_repository(output, request.tune, buckets.typical, progress)
    return BuildReport(
        output=output,
        tasks=tuple(heads),
        buckets=buckets,
        models={
            **{name: f"version {m.version}, {'new' if m.fresh else 'kept'}" for name, m in plan.models.items()},
            **dict.fromkeys(plan.removed, "removed"),
        },
        written=tuple(dict.fromkeys([*written, *tuning.written, *([MANIFEST] if changed else [])])),
        removed=tuple(plan.removed),
        differences=differences,
        precision=request.precision,
        gate=results,
        gated=set(gating.tasks) <= set(results),
        finished_earlier=finished,
        seconds=time.monotonic() - started,
        placement=tuning.placement,
        notes=(*_notes(plan, request), *tuning.notes),
    )


def _notes(plan: RepositoryPlan, request: BuildRequest) -> list[str]:
    """Return remarks on settings that have no effect, or an unwanted one."""
    notes = []
    precision = request.precision
    if request.device == "cpu" and "fp16" in (precision.trunk, precision.heads):
        notes.append(
            "fp16 is for GPUs (--device gpu): a CPU computes it in fp32 with casts, which is good for checks and not "
            "for speed"
        )
    if request.group_heads and not plan.groups:
        notes.append("--group-heads found nothing to group: no tap has two heads that can be put into one model")
    return notes


def _placement(device: Device, tune: Goal | None, manifest: Manifest | None) -> Placement:
    """The placement to build with; what was measured before stays until it is measured anew."""
    if tune is not None and manifest is not None and manifest.placement.device == device:
        return manifest.placement
    return Placement(device=device)


def _check_candidates(output: Path, manifest: Manifest | None) -> None:
    tried = [name for name, entry in (manifest.models if manifest else {}).items() if entry.candidate is not None]
    if tried:
        tasks = ", ".join(name.removeprefix("head_") for name in tried)
        raise UserError(
            f"{output}: a candidate of {tasks} is being tried, which a build would end: "
            "deploy-head --promote or --discard it first"
        )


def _publish(
    output: Path,
    plan: RepositoryPlan,
    gating: GatePlan,
    trunk: Trunk,
    release: Release,
    manifest: Manifest | None,
    texts: Sequence[str],
    progress: ProgressCallback,
) -> tuple[dict[str, float], dict[str, GateResult]]:
    """Writes fresh versions and texts aside, checks the whole, moves it in.

    Gives what Exports.check and what the gate found.
    """
    with Publication(output) as publication:
        try:
            exports = _export(plan, trunk, release, publication, progress)
            differences = exports.check(progress)
            results = dict(gating.known)
            if gating.open:
                results |= measure_losses(trunk, exports.fp32, exports.served, gating.open, plan.buckets, progress)
            if gating.settings.on:
                judge(results, gating.settings.max_loss)
            wanted = plan.contents.texts
            for name in texts:
                publication.write(name, wanted[name])
            versions = merged_versions(output, manifest, plan.models.values(), publication)
            stay = {name: entries for name, entries in versions.items() if name not in plan.removed}
            stands = make_manifest(plan.contents, release.name, stay, manifest, gate=results, gate_rule=gating.rule)
            publication.write(MANIFEST, stands.text())
        except OSError as error:
            raise OneTrunkError(f"{output}: {error.strerror} while writing; nothing was published") from error
        progress("publishing", 0, 1)
        publication.commit(plan.removed)
    return differences, results


def _export(
    plan: RepositoryPlan, trunk: Trunk, release: Release, publication: Publication, progress: ProgressCallback
) -> Exports:
    segments = {segment.name: segment for segment in plan.segments}
    groups = {group.name: group for group in plan.groups}
    exports = Exports(
        trunk=trunk,
        release=release,
        precision=plan.contents.precision,
        segments=plan.contents.segments,
        heads=[(head, plan.models[head_name(task)]) for task, head in plan.heads.items()],
        buckets=plan.buckets,
        publication=publication,
        groups=[(group, plan.models[group.name]) for group in plan.groups],
    )
    fresh = [model for model in plan.models.values() if model.fresh]
    for done, model in enumerate(fresh):
        progress(f"exporting {model.name}", done, len(fresh))
        if model.name == TOKENIZER:
            for file, source in zip(model.files, tokenizer_files(trunk).values(), strict=True):
                shutil.copyfile(source, publication.path(file))
        elif model.name in segments:
            exports.write_segment(segments[model.name], model)
        elif model.name in groups:
            write_group(groups[model.name], release, publication, model)
        else:
            exports.write_head(plan.heads[model.name.removeprefix("head_")], model)
    return exports
