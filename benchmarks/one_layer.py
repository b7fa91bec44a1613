"""Heads of one folded layer on the trunk, trained in other ways: what each way is worth.

    python -m benchmarks.one_layer --work /tmp/one
    python -m benchmarks.one_layer --work /tmp/one --tasks cola --seeds 1
    python -m benchmarks.one_layer --summary

All heads stand on the same tap and cost the same. They learn from labels alone, or also from what the finished head of
the plan in docs/results/quality says: about their own train texts, about changed copies of these, and for longer. It is
what train-head does with --teacher, --variants and --epochs.

Records, README.md and summary.json lie in docs/results/one_layer. What was killed goes on with the head that it was at.
Needs the GLUE data (see tasks/sst2.toml), found by --data or ONETRUNK_DATA, and the teachers: search-heads make
docs/results/quality/plan.toml --heads DIR/teachers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click

from benchmarks.limbs.measuring import chosen, open_study, teach
from benchmarks.limbs.shapes import DEFAULT, MAX_LENGTH, Records, Unlabelled
from benchmarks.teachers import load_teachers
from onetrunk.cli.console import progress_line
from onetrunk.distill.markdown import NOT_YET, gain, points, table
from onetrunk.distill.settings import SearchSettings
from onetrunk.files import atomic_write_text
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.training.compute import describe_machine
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
STUDY = RESULTS / "one_layer"
# A task that wants a deep head, one of pairs, and one whose answers are numbers.
TASKS = ("cola", "mrpc", "stsb")
TAP = 3


@dataclass(frozen=True)
class Way:
    """How a head is trained.

    Attributes:
        taught: Whether the finished head of the plan teaches it, beside the labels.
        variants: The number of changed copies of each train text that the teacher is asked about, too.
        epochs: Passes over all of it.
    """

    taught: bool = True
    variants: int = 0
    epochs: int = 6


BASIS = "labels alone"
WAYS: Mapping[str, Way] = {
    BASIS: Way(taught=False),
    "labels alone, twice as long": Way(taught=False, epochs=12),
    "taught": Way(),
    "taught, twice as long": Way(epochs=12),
    "taught, 3 changed copies": Way(variants=3),
    "taught, 10 changed copies": Way(variants=10),
    "taught, 3 changed copies, twice as long": Way(variants=3, epochs=12),
}


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), help="The folder of teachers and caches.")
@click.option("--tasks", "task_list", default=",".join(TASKS), show_default=True, metavar="A,B")
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Seeds of each head.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data are. [default: $ONETRUNK_DATA]")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, help="Where results go.")
@click.option("--summary", "only_summary", is_flag=True, help="Only write the page, from the records.")
def main(work: Path | None, task_list: str, seeds: int, data: Path | None, study: Path, only_summary: bool) -> None:
    """Train the heads, and write the page."""
    with errors_end_command():
        tasks = chosen("--tasks", task_list, TASKS)
        records = Records(study)
        if not only_summary:
            if work is None:
                raise UserError("--work: give a folder with teachers in it")
            with progress_line() as tell:
                records.add("machine", describe_machine())
                experiment = open_study(DEFAULT, TASKS, work, data, tell)
                run(tasks, seeds, work / "teachers", experiment, records, tell)
        plan = json.loads((RESULTS / "quality" / "summary.json").read_text(encoding="utf-8"))
        found = summary(records, plan["tasks"])
        atomic_write_text(study / "summary.json", json.dumps(found, indent=1) + "\n")
        atomic_write_text(study / "README.md", page(found))
        click.echo(page(found))


def run(
    tasks: list[str], seeds: int, teachers: Path, experiment: Experiment, records: Records, tell: ProgressCallback
) -> None:
    """Train what has no record yet, the first seed of all first."""
    heads = load_teachers(teachers, tasks, experiment.trunk)
    for seed in range(seeds):
        for task in tasks:
            for name, way in WAYS.items():
                if key(task, name, seed) in records.found:
                    continue
                taught = Experiment(experiment.config, experiment.trunk)
                if way.taught:
                    teach(taught, task, heads[task], experiment, tell, Unlabelled(variants=way.variants))
                recipe = SearchSettings().probing(tap=TAP, seed=seed, max_length=MAX_LENGTH, epochs=way.epochs)
                done = execute(RunSpec(task=task, role="fork", recipe=recipe), taught, weights=False, progress=tell)
                facts = {"score": done.score, "best_epoch": done.best_epoch, "cpu_seconds": done.cpu_seconds}
                records.add(key(task, name, seed), facts)


def key(task: str, way: str, seed: int) -> str:
    """Return the key of a head's record."""
    return f"{task}: {way}, seed {seed}"


def summary(records: Records, plan: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what summary.json holds.

    Args:
        records: What was measured.
        plan: Task -> its figures in the summary of docs/results/quality.
    """
    tasks = {}
    for task in TASKS:
        ways = {}
        for way in WAYS:
            start = key(task, way, 0).removesuffix("0")
            found = [one for name, one in records.found.items() if name.startswith(start)]
            scores = [one["score"] for one in found]
            ways[way] = {
                "score": fmean(scores) if scores else None,
                "deviation": stdev(scores) if len(scores) > 1 else None,
                "seeds": len(scores),
                "cpu_seconds": fmean(one["cpu_seconds"] for one in found) if found else None,
            }
        tasks[task] = {
            "metric": plan[task]["metric"],
            "ways": ways,
            "plan": plan[task]["student"],
            "plan_layers": plan[task]["layers"],
        }
    return {"tap": TAP, "tasks": tasks, "machine": records.found.get("machine")}


def page(found: Mapping[str, Any]) -> str:
    """Return README.md."""
    tasks = found["tasks"]
    rows = [(way, *(_cell(one["ways"], way) for one in tasks.values())) for way in WAYS]
    rows.append(
        (
            "head of the plan (layers), the teacher",
            *(f"{points(one['plan'])} ({one['plan_layers']})" for one in tasks.values()),
        )
    )
    return "\n".join(
        [
            "# One layer, trained in other ways",
            "",
            f"Heads of one folded layer on tap {TAP} of the default trunk, all of the same price. Dev scores in "
            "hundredths, means over seeds, with their deviation, the gain over labels alone, and the seconds of "
            "processor time that the training took, in brackets. The best epoch is chosen on the same dev data.",
            "",
            *table(("way", *(f"{task} ({one['metric']})" for task, one in tasks.items())), rows),
            "",
            "A changed copy of a text has some of its words left out and some replaced by words of other texts; the "
            "teacher says what it is. Twice as long is 12 passes over all of it where the others have 6.",
            "",
            f"Made by `python -m benchmarks.one_layer --work DIR` on {found['machine'] or NOT_YET}. The same as JSON: "
            "[summary.json](summary.json).",
            "",
        ]
    )


def _cell(ways: Mapping[str, Mapping[str, Any]], way: str) -> str:
    one, basis = ways[way], ways[BASIS]["score"]
    if one["score"] is None:
        return NOT_YET
    spread = "" if one["deviation"] is None else f" ± {100 * one['deviation']:.1f}"
    more = "" if way == BASIS or basis is None else f", {gain(one['score'] - basis)}"
    return f"{points(one['score'])}{spread}{more} ({one['cpu_seconds']:.0f} s)"


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.one_layer")
