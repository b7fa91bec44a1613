"""From a task and a trunk to a bundle: what ``train-head`` does for each of its tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Examples, Recipe, Split, Task, read_examples
from onetrunk.tasks.head_spec import read_spec
from onetrunk.tasks.overlap import overlap_notes
from onetrunk.training.arithmetic import Arithmetic, DeviceName, Precision, choose_arithmetic
from onetrunk.training.cache import CachedTexts, StateCache, cache_root
from onetrunk.training.checkpoint import Checkpoint
from onetrunk.training.evaluation import LabelledStates, evaluate
from onetrunk.training.fitting import DivergedError, FitState, fit
from onetrunk.training.provenance import find_finished, finished_spec, planned_spec, run_key
from onetrunk.training.result import TrainResult
from onetrunk.training.targets import labelled_targets

_SPLITS: tuple[Split, ...] = ("train", "dev")


def train(
    task: Task,
    trunk: Trunk,
    *,
    recipe: Recipe | None = None,
    heads: Path = Path("heads"),
    cache: Path | None = None,
    data_root: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    force: bool = False,
    skip_bad_rows: bool = False,
    progress: ProgressCallback = silent,
) -> TrainResult:
    """Trains a task's head on the trunk's cached states, and writes its bundle.

    A training that was killed goes on where it was; one that is finished is not done again.

    Args:
        task: the task.
        trunk: the trunk; nothing of it changes.
        recipe: in place of the task's own.
        heads: the folder of bundles.
        cache: the folder of all caches; None is the user's own.
        data_root: where relative data files are looked for first.
        device: where to compute.
        precision: of the trunk's pass over the train texts. Heads are trained, and measured, in fp32.
        force: train although a bundle of the same recipe, trunk and data is there.
        skip_bad_rows: leave out rows that cannot be used, and say so.
        progress: told what is being done.

    Raises:
        UserError: the recipe does not fit the trunk, or the data have faults.
        OneTrunkError: the disk is full, or the loss is no number any more.
    """
    recipe = _with_tap(recipe or task.recipe, trunk)
    # Before any data are read: a tap that the trunk does not have is told at once.
    try:
        head = _fresh_head(task, trunk, recipe)
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from error
    examples = {
        split: read_examples(task, split, data_root=data_root, skip_bad_rows=skip_bad_rows) for split in _SPLITS
    }
    plan = planned_spec(task, trunk, recipe, examples)
    bundle = heads / task.name
    if not force and (there := find_finished(bundle, plan)):
        return TrainResult(there, bundle, already_there=True, notes=_notes(examples))

    arithmetic = choose_arithmetic(trunk, device, precision)
    root = cache_root(cache)
    cached = _run_trunk(root, trunk, arithmetic, task, recipe, examples, progress)
    checkpoint = Checkpoint(root / "runs" / f"{task.name}-{run_key(plan, arithmetic)}.pt")
    if force:
        checkpoint.remove()
    started = time.monotonic()
    data = {split: _labelled(task, trunk, recipe, cached[split], examples[split]) for split in _SPLITS}
    state = _fit(head, task, recipe, data, arithmetic, checkpoint, progress)
    _take_best(head, state)
    evaluation = evaluate(head, data["dev"], task)
    train_seconds = time.monotonic() - started

    trunk_seconds = sum(texts.pass_seconds for texts in cached.values())
    best_epoch = state.best_epoch(task.metric) + 1
    spec = finished_spec(plan, evaluation, arithmetic, best_epoch, trunk_seconds, train_seconds)
    told = [*_cut_notes(examples, cached, recipe.max_length), *evaluation.notes, *_replaced_notes(bundle)]
    if "note" in spec.fitted:
        told.append(spec.fitted["note"])
    save_bundle(bundle, spec, head)
    checkpoint.remove()
    return TrainResult(
        spec,
        bundle,
        epoch_scores=state.scores,
        trunk_seconds=trunk_seconds,
        train_seconds=train_seconds,
        cache_bytes=sum(texts.size_bytes for texts in cached.values()),
        notes=(*_notes(examples), *told),
    )


def _replaced_notes(bundle: Path) -> list[str]:
    """What stood in a bundle's place, which may have been better."""
    try:
        old = read_spec(bundle)
    except UserError:
        return []
    score = f"{old.metric} {100 * old.scores[old.metric]:.1f}" if old.metric in old.scores else "no score"
    return [f"takes the place of a head on tap {old.tap} with {old.layers} layer(s): {score}"]


def _with_tap(recipe: Recipe, trunk: Trunk) -> Recipe:
    return recipe if recipe.tap is not None else recipe.model_copy(update={"tap": trunk.depth // 2})


def _fresh_head(task: Task, trunk: Trunk, recipe: Recipe) -> Head:
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        outputs = task.answers.output(trunk.width, task)
        return new_head(trunk, outputs=outputs, tap=recipe.standing, layers=recipe.layers, query=recipe.query)


def _run_trunk(
    root: Path,
    trunk: Trunk,
    arithmetic: Arithmetic,
    task: Task,
    recipe: Recipe,
    examples: Mapping[Split, Examples],
    progress: ProgressCallback,
) -> dict[Split, CachedTexts]:
    # Heads are served on states in fp32, so that is what their score is measured on: bf16 moves a score by up to half
    # a point, either way.
    arithmetics: dict[Split, Arithmetic] = {"train": arithmetic, "dev": Arithmetic(arithmetic.device, "fp32")}
    return {
        split: StateCache(root, trunk, arithmetics[split]).states(
            rows.texts,
            [recipe.standing],
            max_length=recipe.max_length,
            what=f"{task.name}: trunk on {split} texts",
            progress=progress,
        )
        for split, rows in examples.items()
    }


def _notes(examples: Mapping[Split, Examples]) -> tuple[str, ...]:
    told = tuple(note for rows in examples.values() for note in rows.notes)
    return (*told, *overlap_notes(examples["train"], examples["dev"]))


def _cut_notes(
    examples: Mapping[Split, Examples], cached: Mapping[Split, CachedTexts], max_length: int
) -> tuple[str, ...]:
    return tuple(
        f"{texts.cut:,} of {len(examples[split]):,} {split} texts were cut at {max_length} tokens"
        for split, texts in cached.items()
        if texts.cut
    )


def _labelled(task: Task, trunk: Trunk, recipe: Recipe, texts: CachedTexts, examples: Examples) -> LabelledStates:
    targets = labelled_targets(task, examples, trunk, recipe.max_length)
    return LabelledStates(texts.states[recipe.standing], targets)


def _fit(
    head: Head,
    task: Task,
    recipe: Recipe,
    data: Mapping[Split, LabelledStates],
    arithmetic: Arithmetic,
    checkpoint: Checkpoint,
    progress: ProgressCallback,
) -> FitState:
    try:
        return fit(
            head.to(arithmetic.device),
            task,
            recipe,
            data["train"],
            data["dev"],
            resume=checkpoint.load(),
            after_epoch=checkpoint.save,
            progress=progress,
        )
    except DivergedError:
        # Going on from it would come to the same end.
        checkpoint.remove()
        raise


def _take_best(head: Head, state: FitState) -> None:
    """Gives the head its best weights as the bundle will store them, to be measured anew with those."""
    head.load_state_dict({name: tensor.half().float() for name, tensor in state.best_weights.items()})
