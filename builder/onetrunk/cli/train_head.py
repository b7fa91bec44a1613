"""``train-head``: labelled text in, bundles out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.data_options import limbs_option
from onetrunk.cli.old_spellings import OldSpellings
from onetrunk.cli.training_options import (
    bundle_options,
    check_data,
    echo_notes,
    experiment_options,
    load_named_tasks,
    option_error,
    task_arguments,
    train_all,
)
from onetrunk.protocol.command import errors_end_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from onetrunk.adopt.teacher import ModelTeacher
    from onetrunk.nn.trunk import Trunk
    from onetrunk.progress import ProgressCallback
    from onetrunk.tasks import Recipe, Task
    from onetrunk.tasks.soft_file import SoftFile
    from onetrunk.tasks.text_file import TextRows
    from onetrunk.training import TrainResult
    from onetrunk.training.bundles import Lesson
    from onetrunk.training.head_teacher import HeadTeacher

_EPILOG = """\b
Examples:
  train-head sst2                              by the recipe in tasks/sst2.toml
  train-head --tasks all                       every task in tasks/
  train-head cola --tap 2 --layers 3 --lr 1e-4 the same data, another head
  train-head rte --limb limbs/pairs            on layers that train-limb has trained
  train-head my/spam.toml                      a task of your own
  train-head my/spam.toml --teacher my/model --texts traffic.txt
                                               what a fine-tuned classifier says
  train-head rte --limb limbs/pairs --teacher heads/rte --heads on_limb
                                               a shorter head learns from a finished one
  train-head --tasks mnli,rte --limb limbs/pairs --teacher heads --heads on_limb
                                               each from its own
  train-head my/spam.toml --teacher said.jsonl what a language model or people said
  train-head cola --teacher heads/cola --layers 2 --variants 3 --heads short
                                               and what it makes of changed copies

\b
A task of your own is a table, JSON or another file of texts with labels, and a file
like spam.toml:
  labels = ["ham", "spam"]
  train = "train.csv"
  dev = "dev.csv", or 0.2 for a fifth of train
Columns are sentence, sentence2 (for form = "pair") and label; text_field = "..."
names another. kind = "multilabel", "regression" (with range = [0, 5]) or "tagging"
(labels are types of spans; the data have words and tags) asks for other
outputs than one label: docs/tasks.md has an example of each.

\b
The trunk runs once per text; its states are kept under --cache. A run that was
killed continues when the same command is given again. Next: build-repo --tasks all.
To find the best tap and layers for each task: search-heads run --tasks all."""


@click.command(cls=OldSpellings, epilog=_EPILOG)
@task_arguments
@click.option(
    "--tap",
    type=click.IntRange(0),
    help="Trunk layers below the head. [default: the task's recipe, or the best of short trainings on every tap]",
)
@click.option(
    "--limb",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The limb that the heads stand on, as train-limb has written it; then without --tap.",
)
@click.option("--layers", type=click.IntRange(1), help="The head's own layers. [default: the task's recipe]")
@click.option(
    "--query",
    type=click.Choice(["cls", "mean", "learned"]),
    help="What the head's last layer attends from: the first token, the mean of all, or a learned vector; not for "
    "tagging. [default: the task's recipe]",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the train data. [default: the task's recipe]")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate. [default: the task's recipe]",
)
@click.option("--batch-size", type=click.IntRange(1), help="Texts per training step. [default: the task's recipe]")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="The random seed: the same one leads to the same weights. [default: the task's recipe]",
)
@click.option(
    "--teacher",
    metavar="FOLDER|HUB-ID|FILE",
    help="A fine-tuned classifier of the same task, a finished head of it, a folder of heads, one a task, or a file of "
    "soft labels: its answers are learned beside the labels, or in their place.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts without labels for the teacher: one a line, or a column of a table or of JSON lines. Looked for here, "
    "then where the task's data are.",
)
@click.option(
    "--variants",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    help="Copies of each train text, with words left out and replaced, that the teacher is asked about as well; each "
    "takes as long as the texts.",
)
@click.option(
    "--curve",
    is_flag=True,
    help="Also train on an eighth, a quarter and a half of the texts, and say whether more labels would help.",
)
@click.option("--force", is_flag=True, help="Train again, even if the head is finished.")
@limbs_option
@experiment_options(max_length="the task's recipe")
@bundle_options
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def train_head(
    tasks: tuple[str, ...],
    task_list: str | None,
    task_dir: Path,
    trunk: str | None,
    results: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train heads on the frozen trunk, and write their bundles.

    TASK is the name of a file in the task folder, or a path to a task file.
    """
    with errors_end_command():
        from onetrunk.protocol.errors import UserError

        if options["limb"] is not None and options["tap"] is not None:
            raise UserError("--limb says where heads stand: leave --tap out")
        taught = options["teacher"] is not None
        chosen = {task.name: task for task in load_named_tasks(tasks, task_list, task_dir, needs_data=not taught)}
        if options["variants"] and not taught:
            raise UserError("--variants: changed copies of texts need a teacher: give --teacher too")
        if options["variants"] and options["curve"]:
            raise UserError(
                "--curve tells whether more labels would help, and changed copies of texts have none: leave --variants "
                "out"
            )
        teachers = _find_teachers(list(chosen.values()), options["teacher"], options["texts"])
        said = {name: _read_for_teacher(chosen[name], teacher, options) for name, teacher in teachers.items()}
        echo_notes(check_data(list(chosen.values()), options["data"], options["skip_bad_rows"]))
        train_all(
            list(chosen),
            lambda progress: _trainer(chosen, trunk, teachers, said, options, progress),
            results=results,
            as_json=as_json,
        )


def _trainer(
    tasks: dict[str, Task],
    trunk_name: str | None,
    teachers: dict[str, str],
    said: dict[str, SoftFile | TextRows | None],
    options: dict[str, Any],
    progress: ProgressCallback,
) -> Callable[[str, ProgressCallback], TrainResult]:
    # Imported here: --help and a mistyped option need no torch.
    from onetrunk.nn.trunk import load_trunk
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks.head_spec import limbs_of
    from onetrunk.training import train

    trunk = load_trunk(trunk_name, progress, cache=options["cache"])
    echo_notes(trunk.notes)
    trunk.limbs = limbs_of(options["heads"], options["limbs"])
    lessons = {name: _lesson(tasks[name], one, said[name], trunk, options) for name, one in teachers.items()}
    if options["limb"] is not None:
        from onetrunk.nn.limb import load_limb

        trunk = load_limb(options["limb"]).branch(trunk)
        if options["curve"] and (known := sorted(tasks.keys() & trunk.family.keys())):
            raise UserError(
                f"--curve: the limb has learned from the texts of {', '.join(known)} already, so a part of them shows "
                "nothing: leave --curve out, or --limb"
            )

    def train_one(name: str, progress: ProgressCallback) -> TrainResult:
        return train(
            tasks[name],
            trunk,
            recipe=_recipe(tasks[name], options, trunk),
            heads=options["heads"],
            cache=options["cache"],
            data_root=options["data"],
            device=options["device"],
            trunk_dtype=options["precision"],
            force=options["force"],
            skip_bad_rows=options["skip_bad_rows"],
            lesson=lessons.get(name),
            curve=options["curve"],
            probe=True,
            progress=progress,
        )

    return train_one


def _find_teachers(tasks: list[Task], teacher: str | None, texts: Path | None) -> dict[str, str]:
    """Return the teacher of each task that has one: the one that is named, or its head in a folder of heads.

    Raises:
        UserError: Several tasks would have one teacher, or the options do not go together.
    """
    from onetrunk.protocol.errors import UserError
    from onetrunk.protocol.head_json import HEAD_JSON

    if teacher is None:
        if texts is not None:
            raise UserError("--texts: texts without labels need a teacher: give --teacher too")
        return {}
    place = Path(teacher)
    if place.name == HEAD_JSON:
        raise UserError(f"--teacher {teacher}: a finished head is named by its folder: --teacher {place.parent}")
    of_task = {task.name: place / task.name for task in tasks}
    found = {name: str(folder) for name, folder in of_task.items() if os.path.lexists(folder / HEAD_JSON)}
    alone_there = os.path.lexists(place / HEAD_JSON) or (place / "config.json").exists()
    if found and alone_there:
        raise UserError(
            f"--teacher {teacher}: a teacher itself, and {next(iter(found.values()))} in it is a head: name one of them"
        )
    if not found:
        if not alone_there and (others := sorted(one.parent.name for one in place.glob(f"*/{HEAD_JSON}"))):
            raise UserError(
                f"--teacher {teacher}: no head of {' or '.join(of_task)} is there, only of {', '.join(others)}"
            )
        if len(tasks) > 1:
            raise UserError(
                f"--teacher {teacher}: neither a folder of heads of {', '.join(of_task)}, nor can one teacher know "
                f"{len(tasks)} tasks: name one task; adopt-models takes many models"
            )
        _check_alone(teacher)
        return {tasks[0].name: teacher}
    if len(tasks) > 1:
        if texts is not None:
            raise UserError("--texts: texts without labels are read for one task: name one")
        if missing := [task.name for task in tasks if not task.train]:
            raise UserError(f"task {missing[0]}: it names no train data, so name it alone, with --teacher and --texts")
    if alone := [task for task in tasks if task.name not in found]:
        click.echo(
            f"note: from labels alone: {', '.join(task.name for task in alone)} (no head in {teacher})", err=True
        )
    return found


def _check_alone(teacher: str) -> None:
    """Check that something is there that may teach one task. What is in a model's folder is checked by who reads it.

    Raises:
        UserError: There is nothing, or it is a folder of something else.
    """
    from onetrunk.protocol.errors import UserError
    from onetrunk.protocol.head_json import HEAD_JSON, LIMB_JSON

    place = Path(teacher)
    files = (HEAD_JSON, "config.json", "adapter_config.json")
    is_hub_id = not place.is_absolute() and teacher.partition("@")[0].count("/") == 1
    if place.is_file() or any(os.path.lexists(place / one) for one in files) or (is_hub_id and not place.exists()):
        return
    if (place / LIMB_JSON).exists():
        raise UserError(
            f"--teacher {teacher}: a limb, which answers nothing: heads stand on it by --limb {teacher}; give a "
            "finished head, as in heads/cola"
        )
    found = "neither a head nor a model is in it" if place.exists() else "no such folder or file"
    raise UserError(
        f"--teacher {teacher}: {found}; give the folder of a finished head, a folder of such folders, a classifier's "
        "folder that save_pretrained has written, a hub id as owner/name, or a file of soft labels"
    )


def _read_for_teacher(task: Task, teacher: str, options: dict[str, Any]) -> SoftFile | TextRows | None:
    """Read and check before torch is loaded what can be: a teacher that is a file of soft labels, or a model's texts.

    Raises:
        UserError: The options do not go together, or the file cannot be used.
    """
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks.soft_file import open_soft_file
    from onetrunk.tasks.text_file import read_texts_for

    texts, skip_bad_rows = options["texts"], options["skip_bad_rows"]
    unused = "--texts" if texts is not None else "--variants" if options["variants"] else None
    if Path(teacher).is_file() and unused is not None:
        raise UserError(
            f"{unused}: {teacher} is a file of soft labels, which brings its own texts and says nothing about others: "
            f"leave {unused} out"
        )
    if texts is None and not Path(teacher).is_file():
        if not task.train:
            raise UserError(f"task {task.name}: it names no train data, so give texts for the teacher by --texts")
        return None
    said: SoftFile | TextRows
    if texts is None:
        said = open_soft_file(Path(teacher), task, skip_bad_rows=skip_bad_rows)
    else:
        said = read_texts_for(task, _find_texts(task, texts, options["data"]), skip_bad_rows=skip_bad_rows)
        said = replace(said, source=str(texts))  # the card names it as the user did
    for note in said.notes:
        click.echo(f"note: {note}", err=True)
    return said


def _find_texts(task: Task, texts: Path, data: Path | None) -> Path:
    """Return a file of texts that is here, or where the data of the task are looked for."""
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks.formats import is_data_folder
    from onetrunk.tasks.task_file import locate

    if texts.is_absolute() or texts.is_file() or is_data_folder(texts):
        return texts
    try:
        return Path(locate(task.model_copy(update={"train": str(texts)}), "train", data))
    except UserError:
        return texts  # whose absence is told as that of a file of texts


def _lesson(task: Task, source: str, said: SoftFile | TextRows | None, trunk: Trunk, options: dict[str, Any]) -> Lesson:
    from onetrunk.protocol.errors import UserError
    from onetrunk.protocol.head_json import HEAD_JSON
    from onetrunk.tasks.soft_file import SoftFile
    from onetrunk.training.bundles import Lesson

    if isinstance(said, SoftFile):
        return Lesson(said, source=source)
    teacher: HeadTeacher | ModelTeacher
    if os.path.lexists(Path(source) / HEAD_JSON):
        teacher = _head_teacher(task, Path(source), trunk, options)
        if teacher.decodes and (said is not None or options["variants"] or not task.train):
            raise UserError(
                f"--teacher {source}: a CRF's head teaches beside labels alone, since what it says of a "
                "text is not what its outputs say token by token: leave --texts and --variants out, and name train data"
            )
    else:
        teacher = _model_teacher(task, source, options)
    lesson = Lesson(teacher, variants=options["variants"])
    return lesson if said is None else replace(lesson, texts=said.texts, source=said.source)  # type: ignore[arg-type]


def _head_teacher(task: Task, folder: Path, trunk: Trunk, options: dict[str, Any]) -> HeadTeacher:
    from onetrunk.nn.bundle import load_bundle
    from onetrunk.protocol.errors import UserError
    from onetrunk.training.compute import choose_compute
    from onetrunk.training.head_teacher import HeadTeacher

    if folder.resolve() == (options["heads"] / task.name).resolve():
        raise UserError(
            f"--teacher {folder}: the new head would take its place, and what taught it would be lost: give another "
            "folder by --heads"
        )
    return HeadTeacher(
        load_bundle(folder, any_folder=True),
        task,
        trunk,
        choose_compute(trunk, options["device"], options["precision"]),
        max_length=options["max_length"] or task.recipe.max_length,
        cache=options["cache"],
    )


def _model_teacher(task: Task, source: str, options: dict[str, Any]) -> ModelTeacher:
    from onetrunk.adopt.classifier import open_classifier
    from onetrunk.adopt.teacher import ModelTeacher
    from onetrunk.training.compute import choose_device

    classifier = open_classifier(source, name=task.name, task_kind=task.kind)
    for note in classifier.notes:
        click.echo(f"note: {note}", err=True)
    return ModelTeacher(classifier, cache=options["cache"], device=choose_device(options["device"]))


def _recipe(task: Task, options: dict[str, float | str | None], trunk: Trunk) -> Recipe:
    from pydantic import ValidationError

    from onetrunk.tasks import Recipe

    given = {key: value for key in Recipe.model_fields if (value := options.get(key)) is not None}
    if trunk.limb is not None:
        # The recipe's tap and layers are meant for the trunk itself.
        given = {"tap": trunk.limb.stop, "layers": 1, **given}
    try:
        return Recipe.model_validate({**task.recipe.model_dump(), **given})
    except ValidationError as error:
        raise option_error(error) from error
