"""``train-limb``: a few layers trained on a family of tasks together, for heads to stand on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.console import print_table, progress_line
from onetrunk.cli.training_options import (
    check_data,
    echo_notes,
    experiment_options,
    load_named_tasks,
    option_error,
)
from onetrunk.protocol.command import errors_end_command

if TYPE_CHECKING:
    from onetrunk.nn.bundle import Bundle
    from onetrunk.training.limb import LimbRecipe, TrainedLimb

_EPILOG = """\b
Examples:
  train-limb pairs --tasks mnli,qnli,mrpc,stsb,rte
                                  one layer on tap 2, trained on five tasks: limbs/pairs
  train-limb voice --tasks intent,slots --tap 1 --layers 2
  train-limb pairs --tasks mnli,qnli,mrpc,rte --teacher heads/mnli --teacher heads/qnli
                                  finished heads teach the limb what they make of all texts
  train-head rte --limb limbs/pairs
                                  a head on it, trained alone; so for any other task

\b
A limb is a shared decision, as the trunk is: it is trained once and then frozen, and a
head on it changes nothing for the others. A new limb of the same name is another one;
both are served side by side until no head stands on the old one, which is kept as
NAME@HASH. A run that was killed continues when the same command is given again."""


@click.command(epilog=_EPILOG)
@click.argument("name")
@click.option("--tasks", "task_list", required=True, metavar="A,B", help="The family: tasks to be trained together.")
@click.option("--tap", type=click.IntRange(0), default=2, show_default=True, help="Trunk layers below the limb.")
@click.option("--layers", type=click.IntRange(1), default=1, show_default=True, help="The limb's own layers.")
@click.option(
    "--teacher",
    "teachers",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="A finished head of a task of the family, or a folder of such heads. It teaches what it makes of the texts of "
    "all tasks of its form, beside the labels. May be given several times.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the largest task. [default: 4]")
@click.option(
    "--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="Peak learning rate. [default: 2e-4]"
)
@click.option("--batch-size", type=click.IntRange(1), help="Texts per training step, all of one task. [default: 32]")
@click.option(
    "--sampling",
    type=click.FloatRange(0, 1),
    help="How often small tasks are passed: with 1 each row once an epoch, with 0 as many rows of every task. "
    "[default: 0.5]",
)
@click.option(
    "--mixed-precision",
    is_flag=True,
    default=None,
    help="Run the layers in bf16 while training: two to three times as fast on a GPU or a CPU that is fast in it.",
)
@click.option("--seed", type=click.IntRange(0), help="The random seed. [default: 0]")
@click.option("--force", is_flag=True, help="Train again, even if the limb is finished.")
@click.option(
    "--limbs",
    type=click.Path(path_type=Path, file_okay=False),
    default="limbs",
    show_default=True,
    help="The folder of limbs.",
)
@experiment_options(max_length="128")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train_limb(
    name: str,
    task_list: str,
    task_dir: Path,
    trunk: str | None,
    limbs: Path,
    teachers: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train layers on a family of tasks together, for heads to stand on.

    NAME is the limb's name, and its folder's in --limbs.
    """
    with errors_end_command():
        from onetrunk.protocol.errors import UserError
        from onetrunk.protocol.names import check_task_name

        try:
            check_task_name(name)
        except ValueError as error:
            raise UserError(f"{name}: {error}".replace("a task's name", "a limb's name")) from None
        family = load_named_tasks((), task_list, task_dir)
        notes = check_data(family, options["data"], options["skip_bad_rows"])
        if len(family) == 1:
            notes.append("a limb of one task: train-head does that")
        with progress_line() as progress:
            progress("loading torch and the trunk", 0, 1)
            # Imported here: --help and a mistyped option need no torch.
            from onetrunk.nn.limb import check_layers
            from onetrunk.nn.trunk import load_trunk
            from onetrunk.training.experiment import Experiment, ExperimentConfig
            from onetrunk.training.limb import train_limb as train

            recipe = _recipe(options)
            taught_by = _find_teachers(teachers, [task.name for task in family])
            loaded = load_trunk(trunk, progress, cache=options["cache"])
            check_layers(loaded, recipe.tap, recipe.layers)
            for bundle in taught_by.values():
                bundle.check_trunk(loaded)
            echo_notes([*loaded.notes, *notes])
            loaded.limbs = (limbs,)
            config = ExperimentConfig(
                tasks=tuple(family),
                cache=options["cache"],
                data_root=options["data"],
                device=options["device"],
                trunk_dtype=options["precision"],
                max_length=recipe.max_length,
                skip_bad_rows=options["skip_bad_rows"],
            )
            trained = train(
                name,
                [task.name for task in family],
                recipe,
                Experiment(config, loaded),
                limbs=limbs,
                teachers=taught_by,
                force=options["force"],
                progress=progress,
            )
        _show(trained, as_json)


def _find_teachers(folders: tuple[Path, ...], family: list[str]) -> dict[str, Bundle]:
    """Return the heads of a family's tasks that are in some folders, or are these folders."""
    from onetrunk.nn.bundle import load_bundle
    from onetrunk.protocol.errors import UserError
    from onetrunk.protocol.head_json import HEAD_JSON, LIMB_JSON

    found: dict[str, Bundle] = {}
    for folder in folders:
        if os.path.lexists(folder / HEAD_JSON):
            bundle = load_bundle(folder, any_folder=True)
            if bundle.spec.task not in family:
                raise UserError(
                    f"--teacher {folder}: a head of task {bundle.spec.task!r}, which is not in --tasks "
                    f"({', '.join(family)})"
                )
            bundles = [bundle]
        else:
            bundles = [load_bundle(folder / name) for name in family if os.path.lexists(folder / name / HEAD_JSON)]
            if not bundles and os.path.lexists(folder / LIMB_JSON):
                raise UserError(
                    f"--teacher {folder}: a limb, which answers nothing: give the folder of a finished head"
                )
            if not bundles:
                raise UserError(
                    f"--teacher {folder}: no head of {', '.join(family)} is there: give the folder of a finished head, "
                    "or one that holds such folders, such as heads"
                )
        for bundle in bundles:
            task = bundle.spec.task
            if task in found and found[task].folder.resolve() != bundle.folder.resolve():
                raise UserError(f"--teacher: two heads of task {task!r}: {found[task].folder} and {bundle.folder}")
            found[task] = bundle
    return found


def _recipe(options: dict[str, Any]) -> LimbRecipe:
    from pydantic import ValidationError

    from onetrunk.training.limb import LimbRecipe

    given = {key: value for key in LimbRecipe.model_fields if (value := options.get(key)) is not None}
    try:
        return LimbRecipe.model_validate(given)
    except ValidationError as error:
        raise option_error(error) from error


def _show(trained: TrainedLimb, as_json: bool) -> None:
    spec = trained.spec
    if as_json:
        values = {
            "limb": str(trained.identity),
            "folder": str(trained.folder),
            "tasks": {name: task.model_dump(exclude={"licence"}) for name, task in spec.tasks.items()},
            "epochs": trained.epochs,
            "seconds": round(trained.seconds, 1),
            "notes": trained.notes,
        }
        click.echo(json.dumps(values, indent=2))
        return
    if taught := [name for name, task in spec.tasks.items() if task.teacher_sha256 is not None]:
        alone = [name for name in spec.tasks if name not in taught]
        more = f"; from labels alone: {', '.join(alone)}" if alone else ""
        click.echo(f"taught by finished heads: {', '.join(taught)}{more}", err=True)
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    how = f"in {trained.seconds:.0f} s; wrote" if trained.epochs else "finished earlier (--force trains it again):"
    click.echo(f"{trained.identity} {how} {trained.folder}", err=True)
    rows = [
        [name, task.metric, f"{100 * task.score:.1f}", f"{task.train_rows:,}", f"{task.dev_rows:,}"]
        for name, task in spec.tasks.items()
    ]
    print_table(("task", "metric", "trained jointly", "train rows", "dev rows"), rows)
    click.echo(f"next: train-head TASK --limb {trained.folder}", err=True)
