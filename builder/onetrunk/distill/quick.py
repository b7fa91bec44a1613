"""The quick search: of each task two heads, on the taps that probes find best; and how long this and a search take.

It has no reference, no teacher and no plan: what a search would find beyond the two heads is not looked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import baseline_spec
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import counted
from onetrunk.tasks import Recipe
from onetrunk.training.bundles import write_bundle
from onetrunk.training.experiment import Experiment
from onetrunk.training.loop import training_threads
from onetrunk.training.models import new_model, trained_head
from onetrunk.training.probing import best_tap, probe_epochs, probe_taps
from onetrunk.training.results import TrainResult
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

LEFT_OUT = "full fine-tuning as the reference, teachers and their students, longer heads, and a plan over all tasks"

# The steps of the head of two layers; a small task makes them in more epochs.
_STEPS = 300
_LEAST_EPOCHS, _MOST_EPOCHS = 3, 10
# The teachers and students of a search take about so many times what full fine-tuning takes, which comes on top.
_FINE_TUNINGS = 1.8
# Where the batches that are timed lie, of all texts from short to long.
_PLACES = (1 / 6, 1 / 2, 5 / 6)


def quick_head(
    task: str,
    experiment: Experiment,
    settings: SearchSettings,
    *,
    heads: Path,
    progress: ProgressCallback = silent,
) -> TrainResult:
    """Train a head of one layer on the best tap, and one of two layers on the tap below, and write the better one.

    What was trained before is found by its record, as in a search.

    Args:
        task: The task.
        experiment: The trunk, the data, the cache and the records.
        settings: The budgets of a search.
        heads: The folder of bundles.
        progress: Called as the trunk's pass and the trainings go on.

    Raises:
        UserError: The data have faults.
        OneTrunkError: A training diverged, or the disk is full.
    """
    scores = probe_taps(task, experiment, _one_layer(0, experiment, settings), progress)
    best, metric = best_tap(scores), experiment.task(task).metric
    recipes = [_one_layer(best, experiment, settings)]
    if experiment.trunk.depth > 1:
        recipes.append(_two_layers(task, best, experiment, settings))
    records = [
        execute(RunSpec(task=task, role="fork", recipe=recipe), experiment, progress=progress) for recipe in recipes
    ]
    # Of equal ones the first, which is the cheaper.
    chosen = max(records, key=lambda record: record.score)
    tried = [
        f"{counted(one.spec.recipe.layers, 'layer', 'layers')} on tap {one.spec.recipe.tap}: {100 * one.score:.1f}"
        for one in records
    ]
    probed = [f"probe on tap {tap}: {100 * score:.1f}" for tap, score in scores.items()]
    story = {
        "metric": metric,
        "student": {"score": round(chosen.score, 4), "seeds": 1},
        "tried": [*probed, *tried],
    }
    result = write_bundle(trained_head(chosen, experiment), chosen, experiment, heads=heads, story=story)
    shown = ", ".join(f"{tap} {100 * score:.1f}" for tap, score in scores.items())
    return replace(
        result,
        notes=(
            *result.notes,
            f"{metric} of the probes by tap: {shown}; of the heads: {'; '.join(tried)}",
            f"left out: {LEFT_OUT}; search-heads run without --quick does these",
        ),
    )


def _one_layer(tap: int, experiment: Experiment, settings: SearchSettings) -> Recipe:
    return settings.probing(tap=tap, seed=0, max_length=experiment.config.max_length, epochs=settings.fork_epochs)


def _two_layers(task: str, best: int, experiment: Experiment, settings: SearchSettings) -> Recipe:
    """Return the recipe of a head that ends one layer higher than that of one layer on the best tap would begin."""
    rows = len(experiment.examples(task, "train"))
    tap = max(0, min(best - 1, experiment.trunk.depth - 2))
    recipe = settings.tuning(rows, tap=tap, layers=2, seed=0, max_length=experiment.config.max_length)
    return recipe.model_copy(update={"epochs": _epochs(rows, recipe.batch_size)})


def _epochs(rows: int, batch_size: int) -> int:
    return min(_MOST_EPOCHS, max(_LEAST_EPOCHS, math.ceil(_STEPS * batch_size / max(rows, 1))))


@dataclass(frozen=True)
class SearchTime:
    """About how long searches take on this machine, as measured on a few batches of each task.

    Attributes:
        search_seconds: The search.
        quick_seconds: The quick one.
    """

    search_seconds: float
    quick_seconds: float


def estimate_time(
    tasks: Sequence[str], experiment: Experiment, settings: SearchSettings, *, seeds: int = 1
) -> SearchTime:
    """Measure a few batches, and say how long a search takes and how long a quick one, if nothing is done yet.

    Args:
        tasks: The tasks.
        experiment: The trunk, the data and the cache.
        settings: The budgets of the search.
        seeds: How often full fine-tuning and the chosen heads of small tasks are trained.

    Raises:
        UserError: The data have faults.
    """
    found = [_time_of(task, experiment, settings, seeds) for task in tasks]
    return SearchTime(sum(one.search_seconds for one in found), sum(one.quick_seconds for one in found))


def _time_of(task: str, experiment: Experiment, settings: SearchSettings, seeds: int) -> SearchTime:
    device = experiment.compute.device
    rows = {split: len(experiment.examples(task, split)) for split in ("train", "dev")}
    whole = baseline_spec(task, experiment, settings)
    two = _two_layers(task, 1, experiment, settings) if experiment.trunk.depth > 1 else whole.recipe
    one = _one_layer(0, experiment, settings)
    tokens = experiment.tokens(task, "train")
    batches = _some_batches(np.asarray(tokens.lengths), settings.batch_size)
    model = new_model(whole, experiment).to(device)
    read = [tokens.batch(batch) for batch in batches]
    inputs = [tuple(tensor.to(device) for tensor in batch) for batch in read]
    with torch.no_grad():
        # The trunk's own embeddings are on the CPU.
        states = [(experiment.trunk.encoder.embed(ids, types).to(device), mask.to(device)) for ids, types, mask in read]
        pass_seconds = _seconds(lambda *batch: model(*batch), inputs)
    full = _seconds(_step(model), inputs)
    heads = {}
    for layers, recipe in ((1, one), (2, two)):
        head = new_model(RunSpec(task=task, role="fork", recipe=recipe), experiment).to(device)
        with training_threads(recipe, head):
            heads[layers] = _seconds(_step(head), states)
    steps = math.ceil(rows["train"] / settings.batch_size)
    trunk = sum(math.ceil(count / settings.batch_size) for count in rows.values()) * pass_seconds
    probes = experiment.trunk.depth * probe_epochs(rows["train"], settings.batch_size)
    again = seeds if rows["train"] <= settings.large else 1
    return SearchTime(
        search_seconds=trunk + (_FINE_TUNINGS + again) * whole.recipe.epochs * steps * full,
        quick_seconds=trunk + steps * ((probes + one.epochs) * heads[1] + two.epochs * heads[2]),
    )


def _some_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Return the rows of a few batches of short, ordinary and long texts."""
    order = np.argsort(lengths, kind="stable")
    starts = (int(place * max(0, len(order) - batch_size)) for place in _PLACES)
    return [order[start : start + batch_size] for start in starts]


def _step(model: torch.nn.Module) -> Callable[..., None]:
    def step(*batch: torch.Tensor) -> None:
        model(*batch).float().square().mean().backward()

    return step


def _seconds(work: Callable[..., object], batches: Sequence[tuple[torch.Tensor, ...]]) -> float:
    """Return the mean time of a batch, the first call left out."""
    work(*batches[0])
    begun = time.perf_counter()
    for batch in batches:
        work(*batch)
    return (time.perf_counter() - begun) / len(batches)
