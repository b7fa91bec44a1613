"""Building a repository: plan, export what is missing, check all of it, commit the difference."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from onetrunk.export.release import get_release
from onetrunk.export.runtime import Runtime
from onetrunk.machine import has_matrix_units
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import CPU, FP32, GateResult, Manifest, Placement, Precision, read_manifest
from onetrunk.protocol.names import MANIFEST, SIGNATURE, head_name, head_task
from onetrunk.protocol.signature import Signer
from onetrunk.repository.artifacts import Artifacts
from onetrunk.repository.buckets import Buckets, batch_note
from onetrunk.repository.gate import GatePlan, build_remedy, judge, measure_losses, plan_gate
from onetrunk.repository.heads import long_text_notes, select_heads
from onetrunk.repository.plan import BuildPlan, BuildRequest, plan_repository
from onetrunk.repository.state import changed_texts
from onetrunk.repository.transaction import Transaction, check_signer, commit_state, locked, recover, signed_by
from onetrunk.repository.tuning import Tuning, tune_repository
from onetrunk.tasks.head_spec import limbs_of
from onetrunk.tasks.kinds import get_kind


@dataclass(frozen=True)
class BuildReport:
    """What a build did, or with ``dry_run`` would do.

    Attributes:
        output: The repository.
        tasks: The tasks that it serves.
        buckets: The padded lengths in tokens, and how they suit the texts from which they were chosen.
        models: Model -> ``version N, new``, ``version N, kept`` or ``removed``.
        written: The files that were written, below the repository.
        removed: The folders of models that were removed.
        differences: Model -> greatest difference from torch; empty if nothing had to be checked.
        precision: The dtypes of trunk and heads.
        gate: Task -> the gate's result, of this build or of an earlier one for the same files; empty without a gate.
        gated: Whether every task of reduced precision passed the gate.
        finished_earlier: Whether an earlier transaction that was interrupted was completed first.
        seconds: The time taken.
        placement: Where the models run, and in how many threads.
        notes: Remarks on the settings and on measurements.
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
    signer = None if request.sign is None else Signer(request.sign)
    progress("loading the trunk", 0, 1)
    trunk = load_trunk(request.trunk, progress)
    trunk.limbs = limbs_of(request.heads, request.limbs)
    heads = select_heads(request.heads, request.tasks, trunk, request.embed, request.embed_long_texts)
    buckets = request.buckets.resolve(trunk, request.max_length, list(heads), progress)
    with nullcontext() if request.dry_run else locked(output), signed_by(signer):
        if not request.dry_run:
            check_signer(signer, output)
        finished = not request.dry_run and recover(output)
        manifest = read_manifest(output)
        _check_candidates(output, manifest)
        plan = plan_repository(request, trunk, heads, buckets, manifest)
        gating = plan_gate(plan, manifest, gate)
        if gate.on:
            # Known results are judged again: they may come from a build that allowed a greater loss.
            judge(gating.known, gate.max_loss, build_remedy(request.precision, gate, gating.known))
        fresh = [file for model in plan.models.values() if model.fresh for file in model.files]
        written = [*fresh, *changed_texts(output, plan.state.texts)]
        settings = manifest and (manifest.triton_release, manifest.gate_rule)
        changed = bool(written or plan.removed or gating.pending) or settings != (request.triton_release, gating.rule)
        differences: dict[str, float] = {}
        results = dict(gating.known)
        if changed and not request.dry_run:
            differences, results = _publish(output, plan, gating, trunk, progress)
        unsigned = signer is not None and not signer.has_signed(output)
        if unsigned and not request.dry_run:
            commit_state(output, replace(plan.state, gate=results, gate_rule=gating.rule))
        tuning = Tuning(plan.state.placement)
        if request.tune is not None:
            tuning = tune_repository(output, request.tune, buckets.typical, progress)
    signature = [SIGNATURE] if signer is not None and (changed or unsigned or tuning.written) else []
    return BuildReport(
        output=output,
        tasks=tuple(heads),
        buckets=buckets,
        models={
            **{name: f"version {m.version}, {'new' if m.fresh else 'kept'}" for name, m in plan.models.items()},
            **dict.fromkeys(plan.removed, "removed"),
        },
        written=tuple(dict.fromkeys([*written, *tuning.written, *([MANIFEST] if changed else []), *signature])),
        removed=tuple(plan.removed),
        differences=differences,
        precision=request.precision,
        gate=results,
        gated=set(gating.tasks) <= set(results),
        finished_earlier=finished,
        seconds=time.monotonic() - started,
        placement=tuning.placement,
        notes=(*trunk.notes, *_notes(plan, request), *tuning.notes),
    )


def _check_candidates(output: Path, manifest: Manifest | None) -> None:
    models = manifest.models if manifest else {}
    tried = [head_task(name) or name for name, entry in models.items() if entry.candidate is not None]
    if tried:
        raise UserError(
            f"{output}: a candidate of {', '.join(tried)} is being tried, which a build would end: "
            "deploy-head --promote or --discard it first"
        )


def _publish(
    output: Path, plan: BuildPlan, gating: GatePlan, trunk: Trunk, progress: ProgressCallback
) -> tuple[dict[str, float], dict[str, GateResult]]:
    """Stage fresh versions and texts, check all of it, and commit.

    Returns:
        Model -> greatest difference from torch, and task -> the gate's result.
    """
    state = plan.state
    with Transaction(output) as transaction:
        artifacts = Artifacts(
            trunk=trunk,
            release=get_release(state.triton_release),
            precision=state.precision,
            segments=state.segments,
            heads=[(head, plan.models[head_name(task)]) for task, head in plan.heads.items()],
            buckets=state.buckets,
            transaction=transaction,
            groups=[(used.group, plan.models[used.group.name]) for used in state.groups],
        )
        artifacts.write(plan.models.values(), progress)
        differences = artifacts.check(progress)
        results = dict(gating.known)
        if gating.pending:
            chains = artifacts.fp32, artifacts.served
            results |= measure_losses(
                trunk, *chains, gating.pending, state.buckets, progress, gating.runtime, state.precision
            )
        if gating.settings.on:
            judge(results, gating.settings.max_loss, build_remedy(state.precision, gating.settings, results))
        state = replace(state, gate=results, gate_rule=gating.rule)
        transaction.stage_state(state, state.texts, plan.models.values())
        progress("publishing", 0, 1)
        transaction.commit(plan.removed)
    return differences, results


def _notes(plan: BuildPlan, request: BuildRequest) -> list[str]:
    """Return remarks on settings that have no effect, or an unwanted one."""
    notes = []
    if note := batch_note(plan.state.max_length, plan.state.tokenizer.max_batch_size):
        notes.append(note)
    notes += long_text_notes([head.spec for head in plan.heads.values()], plan.state.max_length)
    if request.device == "cpu" and request.precision.uses("fp16"):
        notes.append(
            "fp16 is for GPUs (--device gpu): a CPU computes it in fp32 with casts, which is good for checks and not "
            "for speed"
        )
    if request.precision.uses("bf16"):
        if not has_matrix_units():
            notes.append(
                "this processor has no matrix units for bf16 (AMX), so here these models are computed in fp32, and the "
                "gate says nothing of bf16: build on a machine like the one that serves, which needs "
                "onetrunk[openvino]"
            )
        notes += [
            f"{task}: its head stays in fp32, since OpenVINO takes no loops"
            for task, head in plan.heads.items()
            if request.precision.heads == "bf16" and get_kind(head.spec.kind).output.has_loops(head.spec)
        ]
    release, ours = get_release(request.triton_release), Runtime().version
    measured_here = request.gate.on and request.gate.runtime == "own"
    if request.precision.uses("int8") and measured_here and release.onnxruntime != ours:
        notes.append(
            f"int8 answers depend on the ONNX Runtime: the gate measures by {ours}, which serve-repo has too, and "
            f"NVIDIA's container of Triton {release.name} has {release.onnxruntime}"
            f"{'; --gate release measures by that' if release.has_known_runtime else ''}"
        )
    if request.group_heads and not plan.state.groups:
        notes.append("--group-heads found nothing to group: no tap has two heads that can be put into one model")
    return notes
