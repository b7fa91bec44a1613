"""Limbs and heads on them, trained and scored, and the texts that tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks.limbs.shapes import MAX_LENGTH, NOTHING_MORE, TASKS, Records, Shape, Study, Unlabelled
from onetrunk.cli.search_heads import fetch_trunk
from onetrunk.cli.training_options import load_tasks
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.limb import LimbSpec, load_limb
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import read_examples
from onetrunk.tasks.examples import Texts, rows_elsewhere
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.head_teacher import HeadTeacher
from onetrunk.training.lessons import make_lessons
from onetrunk.training.limb import LimbRecipe, train_limb
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

ROOT = Path(__file__).resolve().parents[2]


def open_study(study: Study, tasks: Sequence[str], work: Path, data: Path | None, tell: ProgressCallback) -> Experiment:
    """Open the experiment of a study's trunk, which is fetched where it is not there yet.

    Args:
        study: The study.
        tasks: The tasks.
        work: The folder of caches and runs.
        data: Where the data are.
        tell: Called as the trunk is fetched.
    """
    if study.trunk is not None:
        fetch_trunk(study.trunk, tell)
    config = ExperimentConfig(
        tasks=tuple(load_tasks(tasks, ROOT / "tasks")),
        trunk=study.trunk,
        cache=work / "cache",
        runs=work / "runs",
        data_root=data,
        device="cpu",
        trunk_dtype="bf16" if study.bf16 else "fp32",
        max_length=MAX_LENGTH,
    )
    return open_experiment(config)


def chosen(option: str, given: str, allowed: Sequence[str]) -> list[str]:
    """Return the names that an option lists.

    Raises:
        UserError: One is none of those that are allowed.
    """
    wanted = [one.strip() for one in given.split(",")]
    if unknown := [one for one in wanted if one not in allowed]:
        raise UserError(f"{option} {unknown[0]}: allowed are {', '.join(allowed)}")
    return wanted


def new_limb(
    name: str,
    tasks: Sequence[str],
    recipe: LimbRecipe,
    work: Path,
    experiment: Experiment,
    tell: ProgressCallback,
    teachers: Mapping[str, Bundle] = MappingProxyType({}),
) -> tuple[Experiment, LimbSpec]:
    """Train a limb on some tasks, or find it, and return the experiment of heads on it, and what limb.json says."""
    trunk, limbs = experiment.trunk, work / "limbs"
    of_family = {task: bundle for task, bundle in teachers.items() if task in tasks}
    trained = train_limb(name, tasks, recipe, experiment, limbs=limbs, teachers=of_family, progress=tell)
    on_limb = Experiment(experiment.config, load_limb(trained.folder).branch(trunk))
    return on_limb, trained.spec


def teach(
    taught: Experiment,
    task: str,
    bundle: Bundle,
    experiment: Experiment,
    tell: ProgressCallback,
    unlabelled: Unlabelled = NOTHING_MORE,
) -> None:
    """Have a task's heads, on a limb or on the trunk, learn what its finished head says, beside the labels.

    Args:
        taught: The experiment of these heads.
        task: The task.
        bundle: The finished head.
        experiment: The experiment of the trunk.
        tell: Called as the teacher goes on.
        unlabelled: What it is asked about besides the train texts.
    """
    chosen = experiment.task(task)
    teacher = HeadTeacher(
        bundle, chosen, experiment.trunk, experiment.compute, max_length=MAX_LENGTH, cache=experiment.config.cache
    )
    train, dev = (experiment.examples(task, split) for split in SPLITS)
    texts: Texts = ()
    if unlabelled.texts:
        file = chosen.model_copy(update={"train": unlabelled.texts})
        texts = read_examples(file, "train", data_root=experiment.config.data_root).texts
    lessons = make_lessons(
        chosen,
        teacher,
        texts,
        experiment.trunk,
        max_length=MAX_LENGTH,
        train=train,
        dev=dev,
        variants=unlabelled.variants,
        progress=tell,
    )
    taught.teach(task, lessons)


def train_heads(
    shape: Shape,
    task: str,
    where: str,
    taught: Experiment,
    experiment: Experiment,
    teacher: Bundle | None,
    seeds: int,
    records: Records,
    tell: ProgressCallback,
) -> None:
    """Train heads of one layer on the top of a limb, or on the same tap of the trunk; or those that stay on the trunk.

    Each is trained in the recipe that the shape has for the task. What has a record is not done again.

    Args:
        shape: The limb that is measured.
        task: The task.
        where: What the heads stand on, as in the key of their records.
        taught: The experiment of the heads.
        experiment: The experiment of the trunk, on which teachers stand.
        teacher: The finished head that they learn from, beside the labels, if any.
        seeds: The number of heads.
        records: The records.
        tell: Called as the training goes on.
    """
    missing = [seed for seed in range(seeds) if not records.has_head(shape, task, seed, where=where)]
    if missing and teacher is not None:
        teach(taught, task, teacher, experiment, tell, shape.unlabelled.get(task, NOTHING_MORE))
    for seed in missing:
        spec = RunSpec(task=task, role="fork", recipe=shape.head_recipe(task).model_copy(update={"seed": seed}))
        run = execute(spec, taught, weights=False, progress=tell)
        facts = {"score": run.score, "best_epoch": run.best_epoch, "cpu_seconds": run.cpu_seconds}
        records.add_head(shape, task, seed, where=where, **facts)


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
