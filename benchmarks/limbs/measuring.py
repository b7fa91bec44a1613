"""Limbs and heads on them, trained and scored, and the texts that tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks.limbs.shapes import MAX_LENGTH, TASKS, Records, Shape
from onetrunk.distill.settings import SearchSettings
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.limb import load_limb
from onetrunk.progress import ProgressCallback
from onetrunk.tasks import Recipe
from onetrunk.tasks.examples import Texts, rows_elsewhere
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment
from onetrunk.training.head_teacher import HeadTeacher
from onetrunk.training.lessons import make_lessons
from onetrunk.training.limb import LimbRecipe, train_limb
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

_EPOCHS_OF_HEADS = 6


def new_limb(
    name: str,
    tasks: Sequence[str],
    recipe: LimbRecipe,
    work: Path,
    experiment: Experiment,
    tell: ProgressCallback,
    teachers: Mapping[str, Bundle] = MappingProxyType({}),
) -> tuple[Experiment, dict[str, float]]:
    """Train a limb on some tasks, or find it, and return the experiment of heads on it, and its dev scores."""
    trunk, limbs = experiment.trunk, work / "limbs"
    of_family = {task: bundle for task, bundle in teachers.items() if task in tasks}
    trained = train_limb(name, tasks, recipe, experiment, limbs=limbs, teachers=of_family, progress=tell)
    on_limb = Experiment(experiment.config, load_limb(trained.folder).branch(trunk))
    for task, bundle in teachers.items():
        teach(on_limb, task, bundle, experiment, tell)
    return on_limb, {task: one.score for task, one in trained.spec.tasks.items()}


def teach(on_limb: Experiment, task: str, bundle: Bundle, experiment: Experiment, tell: ProgressCallback) -> None:
    """Have a task's heads on a limb learn what its finished head says, beside the labels."""
    chosen = experiment.task(task)
    teacher = HeadTeacher(
        bundle, chosen, experiment.trunk, experiment.compute, max_length=MAX_LENGTH, cache=experiment.config.cache
    )
    train, dev = (experiment.examples(task, split) for split in SPLITS)
    lessons = make_lessons(
        chosen, teacher, (), experiment.trunk, max_length=MAX_LENGTH, train=train, dev=dev, progress=tell
    )
    on_limb.teach(task, lessons)


def train_taught_on_trunk(
    shape: Shape,
    task: str,
    bundle: Bundle,
    experiment: Experiment,
    seeds: int,
    records: Records,
    tell: ProgressCallback,
) -> None:
    """Train heads that stay on the trunk, of several layers, on what a finished head of other layers says."""
    on_trunk = Experiment(experiment.config, experiment.trunk)
    teach(on_trunk, task, bundle, experiment, tell)
    tap, layers = shape.others[task]
    recipe = Recipe(tap=tap, layers=layers, epochs=_EPOCHS_OF_HEADS, learning_rate=2e-4, max_length=MAX_LENGTH)
    for seed in range(seeds):
        key = shape.key(task, seed, where="trunk")
        if key not in records.found:
            spec = RunSpec(task=task, role="fork", recipe=recipe.model_copy(update={"seed": seed}))
            run = execute(spec, on_trunk, weights=False, progress=tell)
            records.add(key, {"score": run.score, "best_epoch": run.best_epoch, "cpu_seconds": run.cpu_seconds})


def train_heads(
    shape: Shape, task: str, where: str, experiment: Experiment, seeds: int, records: Records, tell: ProgressCallback
) -> None:
    """Train heads of one layer on the top of a limb, or on the same tap of the trunk."""
    settings = SearchSettings()
    for seed in range(seeds):
        key = shape.key(task, seed, where=where)
        if key in records.found:
            continue
        recipe = settings.probing(tap=shape.top, seed=seed, max_length=MAX_LENGTH, epochs=_EPOCHS_OF_HEADS)
        run = execute(RunSpec(task=task, role="fork", recipe=recipe), experiment, weights=False, progress=tell)
        records.add(key, {"score": run.score, "best_epoch": run.best_epoch, "cpu_seconds": run.cpu_seconds})


def shared_texts(task: str, experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Return how many dev texts of a task, and how many of its dev pairs, are in the train data of each other task.

    They are compared as ``train_limb`` does, which leaves out the pairs.
    """
    dev = experiment.examples(task, "dev").texts
    parts, found = sorted(_parts(dev)), {}
    for other in TASKS:
        if other != task:
            train = experiment.examples(other, "train").texts
            texts = rows_elsewhere(parts, [sorted(_parts(train))])
            found[other] = (int(texts.sum()), int(rows_elsewhere(dev, [train]).sum()))
    return found


def _parts(texts: Texts) -> set[str]:
    """Return all single texts, of pairs both."""
    return {part for text in texts for part in ([text] if isinstance(text, str) else text)}
