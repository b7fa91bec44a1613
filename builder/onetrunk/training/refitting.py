"""Fit a finished head to its dev data anew, without training: temperature, thresholds, and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrunk.nn.bundle import load_bundle, replace_spec
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Split, Task
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.training.bundles import scores_on_test
from onetrunk.training.compute import DeviceName
from onetrunk.training.evaluation import evaluate
from onetrunk.training.experiment import Experiment, ExperimentConfig


@dataclass(frozen=True)
class RefitResult:
    """A head that was fitted to its dev data anew.

    Attributes:
        bundle: Its folder.
        before: Its head.json before.
        spec: Its head.json now, or with ``dry_run`` as it would be.
        notes: What a user should know: about the data, and about the scores.
    """

    bundle: Path
    before: HeadSpec
    spec: HeadSpec
    notes: tuple[str, ...] = ()


def refit(
    task: Task,
    trunk: Trunk,
    *,
    heads: Path = Path("heads"),
    cache: Path | None = None,
    data_root: Path | None = None,
    device: DeviceName = "auto",
    skip_bad_rows: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback = silent,
) -> RefitResult:
    """Compute what a kind fits on the dev data, the scores and the reference again, and write them into a bundle.

    The result is that of the end of the training. Scores on the test data are written, too, and what the task file says
    about long texts. The file of the weights is not touched.

    Args:
        task: The task.
        trunk: The trunk that the head was trained on.
        heads: The folder of bundles.
        cache: The root folder of all caches; None is the user's own.
        data_root: The folder in which relative data files are looked for first.
        device: The device to compute on.
        skip_bad_rows: Whether rows that cannot be used are left out instead of refused.
        dry_run: Whether nothing is written.
        progress: Called as the trunk's pass goes on.

    Raises:
        UserError: There is no such bundle, or the task, its dev data or the trunk are not those of its training.
        OneTrunkError: The bundle cannot be written; what was there is kept.
    """
    folder = heads / task.name
    bundle = load_bundle(folder, trunk=trunk)
    spec = bundle.spec
    bundle.check_task(task)
    config = ExperimentConfig(
        tasks=(task,),
        cache=cache,
        data_root=data_root,
        device=device,
        max_length=spec.max_length,
        skip_bad_rows=skip_bad_rows,
    )
    experiment = Experiment(config, trunk.branch(spec.limb_id))
    trained_on, found = spec.data.get("dev_sha256"), experiment.examples(task.name, "dev").sha256
    if trained_on != found:
        raise UserError(
            f"{folder}: its epoch was chosen on other dev data than {task.dev} (sha256 {trained_on}, found {found}): "
            "give those, or train it again"
        )
    columns = {key: spec.data[key] for key in ("text_field", "text_pair_field", "label_field") if key in spec.data}
    if columns != task.columns:
        raise UserError(
            f"{folder}: it was trained on {_listed(columns)}, and the task file names {_listed(task.columns)}: name "
            "those, or train it again"
        )
    experiment.states(task.name, "dev", [spec.tap], progress)
    dev = experiment.labelled_states(task.name, "dev", spec.tap)
    head = bundle.head(trunk).to(experiment.compute.device)
    evaluation = evaluate(head, dev, task)
    metrics = tuple(spec.scores)
    test, notes = scores_on_test(head, experiment, task, spec.tap, evaluation.fitted, metrics, progress)
    if spec.test is not None and test is None:
        notes = (*notes, "the task file names no test data, so its test scores are removed")
    # Metrics that the task file has got since then are not asked of the old head.
    scores = {name: evaluation.scores.get(name, score) for name, score in spec.scores.items()}
    # How long texts are read is a matter of serving: the task file may say something else by now.
    changed = {
        "scores": scores,
        "fitted": evaluation.fitted,
        "reference": evaluation.reference,
        "test": test,
        "long_texts": task.long_texts,
        "window_overlap": task.window_overlap,
    }
    refitted = spec.model_copy(update=changed)
    if not dry_run:
        replace_spec(folder, refitted)
    return RefitResult(folder, spec, refitted, (*_data_notes(experiment, task), *notes))


def _listed(columns: Mapping[Any, str]) -> str:
    return ", ".join(f"{key} {column!r}" for key, column in columns.items()) or "the usual columns"


def _data_notes(experiment: Experiment, task: Task) -> tuple[str, ...]:
    # The train data need not be there any more.
    splits: tuple[Split, ...] = ("dev", *task.test_splits)
    return tuple(note for split in splits for note in experiment.examples(task.name, split).notes)
