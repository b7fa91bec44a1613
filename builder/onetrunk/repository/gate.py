"""The gate before a reduced precision: how much of its metric each task may lose on its own dev data."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onetrunk.export.batches import padded_batches, parity_texts
from onetrunk.export.chain import Chain
from onetrunk.export.errors import GateError
from onetrunk.export.release import get_release
from onetrunk.export.runtime import Runtime, runtime_of
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import DEFAULT_RULE, GateResult, GateRule, Manifest, Precision
from onetrunk.protocol.names import head_name, segments_below
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.repository.heads import is_reduced_task
from onetrunk.repository.versions import source_hash
from onetrunk.tasks import Examples, find_task, load_task, read_examples
from onetrunk.tasks.examples import targets_of
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import metric_of

if TYPE_CHECKING:
    from onetrunk.repository.plan import BuildPlan

# Increased when the same files could give another result, so that earlier results no longer count.
GATE_FORMAT = 2


GateTask = tuple[HeadSpec, Examples, str]
"""A head, its dev rows, and the key of the result."""


@dataclass(frozen=True)
class GatePlan:
    """The gate of a build.

    Attributes:
        settings: The settings of the build.
        rule: The rule for the manifest, which is the default if nothing is reduced.
        tasks: The tasks whose answers are computed in a reduced precision.
        known: Task -> an earlier result for the same files and, if there is a gate, for the same rows.
        pending: What has yet to be measured; empty if there is no gate.
        runtime: The ONNX Runtime that measures.
    """

    settings: GateSettings
    rule: GateRule
    tasks: tuple[str, ...]
    known: Mapping[str, GateResult]
    pending: Sequence[GateTask]
    runtime: Runtime


def gate_runtime(settings: GateSettings, release: str, precision: Precision) -> Runtime:
    """Return the ONNX Runtime that a gate measures by.

    Args:
        settings: The gate.
        release: The Triton release that is built for.
        precision: What the files compute in.

    Raises:
        UserError: It is that of the release, and which one that is is not known, or it does not compute in bf16.
    """
    if settings.runtime == "release" and precision.uses("bf16"):
        raise UserError(
            f"--gate release: Triton {release} has no OpenVINO that computes in bf16, and serves these files in fp32: "
            "give --gate on, which measures by the OpenVINO that is installed, as serve-repo computes"
        )
    return runtime_of(get_release(release)) if settings.runtime == "release" else Runtime()


def plan_gate(plan: BuildPlan, manifest: Manifest | None, settings: GateSettings) -> GatePlan:
    """Compare the results that a build needs with those in the manifest.

    Raises:
        UserError: There is a gate, and a task has no dev data; or the release's ONNX Runtime cannot measure.
    """
    precision = plan.state.precision
    keys = {
        task: _key(plan, task)
        for task, head in plan.heads.items()
        if is_reduced_task(head, plan.state.segments, precision)
    }
    rule = settings.rule if precision.is_reduced else DEFAULT_RULE
    runtime = gate_runtime(settings, plan.state.triton_release, precision) if keys and settings.on else Runtime()
    by = runtime.measured_by(precision)
    earlier = manifest.gate if manifest else {}
    known = {task: earlier[task] for task, key in keys.items() if task in earlier and earlier[task].key == key}
    if not settings.on:
        return GatePlan(settings, rule, tuple(keys), known, [], runtime)
    dev = {task: read_dev(plan.heads[task].spec, settings) for task in keys}
    known = {
        task: result
        for task, result in known.items()
        if (result.data, result.measured_by) == (rows_hash(dev[task]), by)
    }
    pending = [(plan.heads[task].spec, dev[task], key) for task, key in keys.items() if task not in known]
    return GatePlan(settings, rule, tuple(keys), known, pending, runtime)


def _key(plan: BuildPlan, task: str) -> str:
    head = plan.heads[task]
    below = [plan.models[one.name].source for one in segments_below(plan.state.segments, head.spec.state)]
    return gate_key(plan.state.buckets, below, plan.models[head_name(task)].source)


def gate_key(buckets: Sequence[int], below: Iterable[str], head: str) -> str:
    """Return a hash over all files that answer a task.

    Args:
        buckets: The padded lengths in tokens.
        below: The sources of the segments below the head, lowest first.
        head: The head's source.
    """
    return source_hash(GATE_FORMAT, ",".join(map(str, buckets)), *below, head)


def read_dev(spec: HeadSpec, settings: GateSettings) -> Examples:
    """Read a task's labelled dev rows, or a sample of them if there are more than the rule asks for.

    An embedding has no labels. Any texts show how far it moves, so it is measured on those of the parity check.

    Raises:
        UserError: The task file or its data are not found, or the task file does not match the head.
    """
    if not get_kind(spec.kind).has_weights:
        known = tuple(dict.fromkeys(text for pair in parity_texts() for text in pair if text))
        return Examples("parity texts", known, (None,) * len(known), "")
    try:
        task = load_task(find_task(spec.task, settings.task_dir))
        if (task.kind, task.form, task.labels, task.range) != (spec.kind, spec.form, spec.labels, spec.range):
            raise UserError(f"{settings.task_dir}/{spec.task}.toml: kind, form, labels or range are not the head's")
        examples = read_examples(task, "dev", data_root=settings.data_root, skip_bad_rows=True)
    except UserError as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(
            f"task {spec.task}: no dev data to see what it loses: {reason}. Give --task-dir or --data, or --gate off"
        ) from error
    if not 0 < settings.rows < len(examples):
        return examples
    rows = np.sort(np.random.default_rng(0).permutation(len(examples))[: settings.rows])
    texts = tuple(examples.texts[row] for row in rows)
    targets = tuple(examples.targets[row] for row in rows)
    return Examples(examples.source, texts, targets, examples.sha256)


def rows_hash(examples: Examples) -> str:
    """Return a hash over texts and labels.

    The hash of the data file would not do: a task file that names other fields reads other rows from the same file.
    """
    return hashlib.sha256(json.dumps([examples.texts, examples.targets]).encode()).hexdigest()


def measure_losses(
    trunk: Trunk,
    fp32: Chain,
    reduced: Chain,
    tasks: Sequence[GateTask],
    buckets: tuple[int, ...],
    progress: ProgressCallback,
    runtime: Runtime,
    precision: Precision,
) -> dict[str, GateResult]:
    """Measure each task's metric by the fp32 files and by the files to serve; of an embedding, its cosine to fp32.

    Args:
        trunk: The trunk, for its tokenizer.
        fp32: The fp32 files.
        reduced: The files to serve.
        tasks: The heads to measure, with their dev rows and keys.
        buckets: The padded lengths in tokens.
        progress: Called after each batch.
        runtime: The ONNX Runtime that both run on; it is fetched where it is not there.
        precision: What the files to serve compute in.

    Returns:
        Task -> its result.

    Raises:
        ParityError: ONNX Runtime does not load a file.
        OneTrunkError: The ONNX Runtime cannot be fetched.
    """
    packages = runtime.fetch(progress=progress)
    chains = [replace(chain, packages=packages) for chain in (fp32, reduced)]
    by = runtime.measured_by(precision)
    found = {}
    for spec, examples, key in tasks:
        batches = list(padded_batches(trunk, examples.texts, buckets))
        report = _batch_counter(progress, f"measuring {spec.task} in fp32 and reduced", total=2 * len(batches))
        kind = get_kind(spec.kind)
        answers = [chain.scores(spec, batches, report) for chain in chains]
        targets = (
            targets_of(kind, examples.targets, spec, examples.texts, trunk.tokenizer, buckets[-1])
            if kind.has_weights
            else answers[0]
        )
        scores = [metric_of(one, targets, spec) for one in answers]
        found[spec.task] = GateResult(
            metric=spec.metric,
            rows=len(examples),
            fp32=scores[0],
            reduced=scores[1],
            key=key,
            data=rows_hash(examples),
            measured_by=by,
        )
    return found


def _batch_counter(progress: ProgressCallback, what: str, total: int) -> Callable[[], None]:
    """Report that nothing is done yet, and return a function that reports one more batch at each call."""
    done = itertools.count()
    progress(what, next(done), total)
    return lambda: progress(what, next(done), total)


def build_remedy(precision: Precision, rule: GateRule, results: Mapping[str, GateResult]) -> str:
    """Return what can be done about a build that the gate refuses: nothing that was asked for already.

    Args:
        precision: The precision of the build.
        rule: The rule of its gate.
        results: Task -> its result.
    """
    remedies = []
    if precision.trunk != "fp32" and precision.heads != "fp32":
        remedies.append(f"keep a part in fp32, as by --precision trunk=fp32,heads={precision.heads}")
    # A task of fewer rows was measured on all that it has.
    if any(one.rows == rule.rows and not one.passes(rule.max_loss) for one in results.values()):
        remedies.append("measure on all rows by --gate-rows 0")
    return ", or ".join([*remedies, "allow more by --max-loss", "build without --precision"])


def judge(results: Mapping[str, GateResult], max_loss: float, remedy: str) -> None:
    """Refuse results of which one loses more than ``max_loss`` points.

    Args:
        results: Task -> its result.
        max_loss: The greatest loss allowed, in points.
        remedy: What a user can do about a loss, for the message.

    Raises:
        GateError: A task loses more, or NaN.
    """
    if not all(result.passes(max_loss) for result in results.values()):
        raise GateError(results, max_loss, remedy)
