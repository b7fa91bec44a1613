"""What limbs are worth: heads of one layer on limbs, beside heads of the same price on the trunk, and longer ones.

    python -m benchmarks.limbs --work /tmp/limbs
    python -m benchmarks.limbs --work /tmp/limbs --limbs pairs --steps limb,heads --seeds 1
    python -m benchmarks.limbs --summary

Four limbs: ``pairs`` is one layer on tap 2, for all pair tasks of GLUE; ``taught`` is the same, and the heads of the
plan in docs/results/quality teach it and the heads on it; ``all`` is so, too, for all eight tasks, and it ships;
``base`` is four layers on tap 3 of the base-size trunk, for all eight, from labels alone. For each:

1. ``limb``: it is trained on its family together.
2. ``heads``: each task gets heads of one layer on it, several seeds.
3. ``trunk``: of ``pairs``, also on the tap of the trunk where a head costs the same.
4. ``left-out``: a limb is trained without some small tasks, and heads for these stand on it: what a limb is worth to a
   task that it has never seen.
5. ``cost``: all eight tasks, those of the family on the limb, are timed beside eight single-task models in one run.

Records, README.md and summary.json lie in docs/results/limbs. What was killed goes on. Needs the GLUE data (see
tasks/sst2.toml), found by --data or ONETRUNK_DATA, and the teachers of ``taught`` and ``all``: search-heads make
docs/results/quality/plan.toml --heads DIR/teachers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.limbs.measuring import chosen, new_limb, open_study, shared_texts, train_heads
from benchmarks.limbs.page import page, summary
from benchmarks.limbs.shapes import BASE, DEFAULT, SHAPES, TASKS, Records, Shape
from benchmarks.study.measured_cost import MeasuredCost, measure_plan_cost
from benchmarks.teachers import load_teachers
from onetrunk.cli.console import progress_line
from onetrunk.files import atomic_write_text
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.training.compute import describe_machine
from onetrunk.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
STUDY = RESULTS / "limbs"
STEPS = ("limb", "heads", "trunk", "left-out", "cost")


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), help="The folder of limbs and caches.")
@click.option(
    "--limbs",
    "names",
    default=",".join(shape.name for shape in SHAPES if shape.study is DEFAULT),
    show_default=True,
    metavar="A,B",
    help="Which; base takes hours.",
)
@click.option("--steps", default=",".join(STEPS), show_default=True, metavar="A,B")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds of each head.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data are. [default: $ONETRUNK_DATA]")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, help="Where results go.")
@click.option("--summary", "only_summary", is_flag=True, help="Only write the page, from the records.")
def main(
    work: Path | None,
    names: str,
    steps: str,
    seeds: int,
    data: Path | None,
    study: Path,
    only_summary: bool,
) -> None:
    """Measure what limbs are worth, and write the page."""
    with errors_end_command():
        shapes = [shape for shape in SHAPES if shape.name in chosen("--limbs", names, [one.name for one in SHAPES])]
        wanted = chosen("--steps", steps, STEPS)
        records = Records(study)
        if not only_summary:
            if work is None:
                raise UserError("--work: give a folder for limbs and caches")
            with progress_line() as tell:
                records.add("machine", describe_machine())
                experiments = {
                    study.folder: open_study(study, TASKS, work, data, tell)
                    for study in {shape.study.folder: shape.study for shape in shapes}.values()
                }
                some = next(iter(experiments.values()))
                records.add("shared texts", {task: shared_texts(task, some) for task in TASKS})
                for shape in shapes:
                    experiment = experiments[shape.study.folder]
                    run(shape, wanted, seeds, work, study, experiment, records, tell)
        costs = {shape.name: MeasuredCost.read(path) for shape in SHAPES if (path := _cost_file(study, shape)).exists()}
        known = {
            of.folder: json.loads((RESULTS / of.folder / "summary.json").read_text(encoding="utf-8"))
            for of in (DEFAULT, BASE)
        }
        found = summary(records, costs, known)
        atomic_write_text(study / "summary.json", json.dumps(found, indent=1) + "\n")
        atomic_write_text(study / "README.md", page(found, records))
        click.echo(page(found, records))


def _cost_file(study: Path, shape: Shape) -> Path:
    return study / f"share_{shape.name}.json"


def run(
    shape: Shape,
    steps: Sequence[str],
    seeds: int,
    work: Path,
    study: Path,
    experiment: Experiment,
    records: Records,
    tell: ProgressCallback,
) -> None:
    """Do the steps that are asked for; what has a record is not done again."""
    trains = {"limb", "heads", "left-out"} & set(steps)
    teachers = load_teachers(work / "teachers", shape.taught, experiment.trunk) if trains else {}
    if "limb" in steps or "heads" in steps:
        branch, spec = new_limb(shape.name, shape.family, shape.recipe, work, experiment, tell, teachers)
        records.begin(shape, shape.on_it, "limb", branch.trunk.identity)
        records.add(f"{shape.name}: joint training", {task: one.score for task, one in spec.tasks.items()})
        records.add(f"{shape.name}: seconds of it", spec.recipe["seconds"])
        # Small tasks first.
        for task in reversed(shape.on_it) if "heads" in steps else ():
            train_heads(shape, task, "limb", branch, experiment, teachers.get(task), seeds, records, tell)
        for task in shape.others if "heads" in steps else ():
            if task in teachers:
                on_trunk = Experiment(experiment.config, experiment.trunk)
                train_heads(shape, task, "trunk", on_trunk, experiment, teachers[task], seeds, records, tell)
    if "trunk" in steps and shape.same_price:
        for task in reversed(shape.family):
            train_heads(shape, task, "trunk", experiment, experiment, None, seeds, records, tell)
    for group in shape.left_out if "left-out" in steps else ():
        rest = [one for one in shape.family if one not in group]
        recipe = shape.recipe.model_copy(update={"epochs": 2})
        name = "_".join((shape.name, "without", *group))
        branch, _ = new_limb(name, rest, recipe, work, experiment, tell, teachers)
        records.begin(shape, group, "limb without it", branch.trunk.identity)
        for task in group:
            train_heads(shape, task, "limb without it", branch, experiment, teachers.get(task), seeds, records, tell)
    if "cost" in steps:
        others: list[tuple[int, int, Query]] = [(tap, layers, "cls") for tap, layers in shape.others.values()]
        on_limb: list[tuple[int, int, Query]] = [(shape.top, 1, "cls")] * len(shape.on_it)
        limbs = {(shape.recipe.tap, shape.top): on_limb}
        measured = measure_plan_cost(others, experiment.trunk, limbs=limbs, progress=tell, **shape.study.cost)
        measured.write(_cost_file(study, shape))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.limbs")
