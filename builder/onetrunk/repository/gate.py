"""The gate before a repository of reduced precision: what each task loses on its own dev data."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from onetrunk.export.batches import padded_batches
from onetrunk.export.chain import Chain
from onetrunk.export.errors import GateError
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import GateResult
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.tasks import Examples, find_task, load_task, read_examples
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import metric_of
from onetrunk.tasks.offsets import targets_of

BUILD_REMEDY = (
    "keep a part in fp32, as by --precision trunk=fp32,heads=int8, or measure on all rows by --gate-rows 0, or allow "
    "more by --max-loss"
)

# Raised by one when the same files could come out otherwise: results of before are then forgotten.
GATE_FORMAT = 2


def read_dev(spec: HeadSpec, settings: GateSettings) -> Examples:
    """A task's labelled dev texts, a sample of them where there are many.

    Raises:
        UserError: there is no task file, it is about something else than the head, or its data are not found.
    """
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
    """One hash over the texts and labels themselves: a task file that reads other fields gives other rows of a file."""
    return hashlib.sha256(json.dumps([examples.texts, examples.targets]).encode()).hexdigest()


def measure_losses(
    trunk: Trunk,
    fp32: Chain,
    reduced: Chain,
    tasks: Sequence[tuple[HeadSpec, Examples, str]],
    buckets: tuple[int, ...],
    progress: ProgressCallback,
) -> dict[str, GateResult]:
    """Runs each task's dev texts through both chains.

    Args:
        trunk: the trunk, for its tokenizer.
        fp32: the fp32 files.
        reduced: the files to be served.
        tasks: head, its dev texts and the key of its result.
        buckets: padded lengths in tokens.
        progress: see ProgressCallback.

    Returns:
        Task -> what was found.
    """
    found = {}
    for spec, examples, key in tasks:
        batches = list(padded_batches(trunk, examples.texts, buckets))
        counter, what = itertools.count(1), f"measuring {spec.task} in fp32 and reduced"
        total = 2 * len(batches)
        kind, texts = get_kind(spec.kind), examples.texts
        targets = targets_of(kind, examples.targets, spec, texts, trunk.tokenizer, buckets[-1])
        progress(what, 0, total)
        before, after = (
            metric_of(
                chain.scores(spec, batches, lambda c=counter, w=what, t=total: progress(w, next(c), t)),  # type: ignore[misc]
                targets,
                spec,
            )
            for chain in (fp32, reduced)
        )
        found[spec.task] = GateResult(
            metric=spec.metric, rows=len(examples), fp32=before, reduced=after, key=key, data=rows_hash(examples)
        )
    return found


def judge(results: Mapping[str, GateResult], max_loss: float, remedy: str = BUILD_REMEDY) -> None:
    """Raises GateError, with what a user may do, where a task loses more than ``max_loss`` points."""
    if not all(result.passes(max_loss) for result in results.values()):
        raise GateError(results, max_loss, remedy)
