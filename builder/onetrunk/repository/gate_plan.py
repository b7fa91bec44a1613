"""Which tasks have to pass the gate, and what is known of them from before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onetrunk.protocol.manifest import DEFAULT_RULE, GateResult, GateRule, Manifest
from onetrunk.protocol.names import head_name
from onetrunk.repository.gate import GATE_FORMAT, read_dev, rows_hash
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.repository.heads import is_reduced_task
from onetrunk.repository.plan import BuildPlan
from onetrunk.repository.versions import source_hash
from onetrunk.tasks import Examples
from onetrunk.tasks.head_spec import HeadSpec


@dataclass(frozen=True)
class GatePlan:
    """The gate of a build.

    Attributes:
        settings: how it is passed.
        rule: what the manifest keeps of that: as by default where nothing is reduced.
        tasks: the tasks that are answered in a reduced precision.
        known: task -> what was found before: for the same files, and where there is a gate, on the same rows.
        open: head, dev texts and key of what is still to be found; empty where there is no gate.
    """

    settings: GateSettings
    rule: GateRule
    tasks: tuple[str, ...]
    known: Mapping[str, GateResult]
    open: Sequence[tuple[HeadSpec, Examples, str]]


def plan_gate(plan: BuildPlan, manifest: Manifest | None, settings: GateSettings) -> GatePlan:
    """Compares what has to be known with what the manifest says was found.

    Raises:
        UserError: there is a gate, and a task has no dev data.
    """
    precision = plan.state.precision
    keys = {
        task: _key(plan, task)
        for task, head in plan.heads.items()
        if is_reduced_task(head, plan.state.segments, precision)
    }
    rule = settings.rule if precision.is_reduced else DEFAULT_RULE
    before = manifest.gate if manifest else {}
    known = {task: before[task] for task, key in keys.items() if task in before and before[task].key == key}
    if not settings.on:
        return GatePlan(settings, rule, tuple(keys), known, [])
    dev = {task: read_dev(plan.heads[task].spec, settings) for task in keys}
    known = {task: result for task, result in known.items() if result.data == rows_hash(dev[task])}
    still = [(plan.heads[task].spec, dev[task], key) for task, key in keys.items() if task not in known]
    return GatePlan(settings, rule, tuple(keys), known, still)


def _key(plan: BuildPlan, task: str) -> str:
    head = plan.heads[task]
    below = [plan.models[segment.name].source for segment in plan.state.segments if segment.stop <= head.spec.tap]
    return gate_key(plan.state.buckets, below, plan.models[head_name(task)].source)


def gate_key(buckets: Sequence[int], below: Iterable[str], head: str) -> str:
    """One hash over all files that answer a task.

    Args:
        buckets: padded lengths in tokens.
        below: sources of the segments below the head, lowest first.
        head: the head's source.
    """
    return source_hash(GATE_FORMAT, ",".join(map(str, buckets)), *below, head)
