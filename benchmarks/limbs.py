"""What limbs are worth: heads of one layer on limbs, beside heads of the same price on the trunk, and longer ones.

    python -m benchmarks.limbs --work /tmp/limbs
    python -m benchmarks.limbs --work /tmp/limbs --limbs pairs --steps limb,heads --seeds 1
    python -m benchmarks.limbs --summary

Three limbs: ``pairs`` is one layer on tap 2, for all pair tasks of GLUE; ``taught`` is the same, and the heads that
ship teach it and the heads on it; ``all`` is four layers on tap 1, for all eight tasks. For each:

1. ``limb``: it is trained on its family together.
2. ``heads``: each task gets heads of one layer on it, several seeds.
3. ``trunk``: of ``pairs``, also on the tap of the trunk where a head costs the same.
4. ``left-out``: a limb is trained without some small tasks, and heads for these stand on it: what a limb is worth to a
   task that it has never seen.
5. ``cost``: all eight tasks, those of the family on the limb, are timed beside eight single-task models in one run.

Records, README.md and summary.json lie in docs/results/limbs. What was killed goes on. Needs the GLUE data (see
tasks/sst2.toml), found by --data or ONETRUNK_DATA.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click

from benchmarks.study.measured_cost import MeasuredCost, measure_plan_cost
from onetrunk.cli.console import progress_line
from onetrunk.cli.training_options import load_tasks
from onetrunk.distill.markdown import NOT_YET, gain, percent, points, table
from onetrunk.distill.settings import SearchSettings
from onetrunk.files import atomic_write_text
from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.limb import load_limb
from onetrunk.nn.trunk import load_trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.tasks.examples import normalized
from onetrunk.tasks.records import SPLITS
from onetrunk.tasks.rows import Text
from onetrunk.training.compute import describe_machine
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.head_teacher import HeadTeacher
from onetrunk.training.lessons import make_lessons
from onetrunk.training.limb import LimbRecipe, train_limb
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "docs" / "results" / "limbs"
QUALITY = ROOT / "docs" / "results" / "quality" / "summary.json"
PAIRS = ("mnli", "qnli", "qqp", "mrpc", "stsb", "rte")
TASKS = ("cola", "sst2", *PAIRS)
STEPS = ("limb", "heads", "trunk", "left-out", "cost")
EPOCHS_OF_HEADS = 6
MAX_LENGTH = 128
_SIGNS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Shape:
    """A limb to be measured.

    Attributes:
        name: Its name.
        family: The tasks that it is trained on.
        recipe: How.
        others: The tasks that stay on the trunk: their tap and layers, as the plan of docs/results/quality has them.
        left_out: Groups of tasks; for each, a limb is trained on the rest of the family, for two epochs.
        trunk: Whether heads of the same price on the trunk are trained, too.
        taught: The tasks whose heads in heads/ teach the limb, and the heads on it; the others learn from labels alone.
    """

    name: str
    family: tuple[str, ...]
    recipe: LimbRecipe
    others: Mapping[str, tuple[int, int]]
    left_out: tuple[tuple[str, ...], ...]
    trunk: bool = False
    taught: tuple[str, ...] = ()

    @property
    def top(self) -> int:
        """The tap that heads on it have."""
        return self.recipe.tap + self.recipe.layers

    def key(self, task: str, seed: int, *, where: str = "limb") -> str:
        """The key of a head's record."""
        return f"{self.name}: {task} on {where} seed {seed}"


_ONE_LAYER = LimbRecipe(tap=2, layers=1, epochs=4, max_length=MAX_LENGTH)
_NO_PAIRS = {"cola": (1, 3), "sst2": (3, 1)}
SHAPES = (
    Shape("pairs", PAIRS, _ONE_LAYER, others=_NO_PAIRS, left_out=(("rte",),), trunk=True),
    # RTE's own head is little better than chance, and so is what it would teach.
    Shape("taught", PAIRS, _ONE_LAYER, others=_NO_PAIRS, left_out=(), taught=tuple(t for t in PAIRS if t != "rte")),
    Shape(
        "all",
        TASKS,
        LimbRecipe(
            tap=1,
            layers=4,
            epochs=3,
            learning_rate=1.5e-4,
            dropout=0.0,
            mixed_precision=True,
            max_length=MAX_LENGTH,
        ),
        others={},
        left_out=(("mrpc", "stsb", "rte", "cola"),),
    ),
)


class Records:
    """What was measured, by key; each is written at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "records.json"
        self.found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}

    def begin(self, shape: Shape, tasks: Sequence[str], where: str, limb: str) -> None:
        """Forget heads that stood on another limb, as one that is trained anew on another machine is."""
        name = f"{shape.name}: {where} of {', '.join(tasks)}"
        if self.found.get(name) != limb:
            old = {shape.key(task, 0, where=where).removesuffix("0") for task in tasks}
            self.found = {key: one for key, one in self.found.items() if key.rstrip("0123456789") not in old}
            self.add(name, limb)

    def add(self, key: str, value: object) -> None:
        """Keep a record."""
        self.found[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self._path, json.dumps(dict(sorted(self.found.items())), indent=1) + "\n")

    def scores(self, shape: Shape, task: str, *, where: str = "limb") -> list[float]:
        """Return the scores of all seeds of a head."""
        start = shape.key(task, 0, where=where).removesuffix("0")
        return [value["score"] for key, value in self.found.items() if key.startswith(start)]


def new_limb(
    name: str,
    tasks: Sequence[str],
    recipe: LimbRecipe,
    work: Path,
    experiment: Experiment,
    tell: ProgressCallback,
    taught: Sequence[str] = (),
) -> tuple[Experiment, dict[str, float]]:
    """Train a limb on some tasks, or find it, and return the experiment of heads on it, and its dev scores."""
    trunk, limbs = experiment.trunk, work / "limbs"
    teachers = {task: load_bundle(ROOT / "heads" / task, trunk=trunk) for task in taught}
    trained = train_limb(name, tasks, recipe, experiment, limbs=limbs, teachers=teachers, progress=tell)
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


def train_heads(
    shape: Shape, task: str, where: str, experiment: Experiment, seeds: int, records: Records, tell: ProgressCallback
) -> None:
    """Train heads of one layer on the top of a limb, or on the same tap of the trunk."""
    settings = SearchSettings()
    for seed in range(seeds):
        key = shape.key(task, seed, where=where)
        if key in records.found:
            continue
        recipe = settings.probing(tap=shape.top, seed=seed, max_length=MAX_LENGTH, epochs=EPOCHS_OF_HEADS)
        run = execute(RunSpec(task=task, role="fork", recipe=recipe), experiment, weights=False, progress=tell)
        records.add(key, {"score": run.score, "best_epoch": run.best_epoch, "cpu_seconds": run.cpu_seconds})


def shared_texts(task: str, experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Return how many dev texts of a task, and how many of its dev pairs, are in the train data of each other task.

    Texts are compared by their letters and digits: the same sentence has blanks before its punctuation in one corpus,
    and none in another.
    """
    dev_texts, dev_pairs = _texts_and_pairs(experiment.examples(task, "dev").texts)
    found = {}
    for other in TASKS:
        if other != task:
            texts, pairs = _texts_and_pairs(experiment.examples(other, "train").texts)
            found[other] = (len(dev_texts & texts), len(dev_pairs & pairs))
    return found


def _texts_and_pairs(texts: Iterable[Text]) -> tuple[set[str], set[frozenset[str]]]:
    pairs = [[_SIGNS.sub("", part) for part in normalized(text)] for text in texts]
    return {part for pair in pairs for part in pair}, {frozenset(pair) for pair in pairs}


def summary(
    records: Records, costs: Mapping[str, MeasuredCost], quality: Mapping[str, Any]
) -> dict[str, dict[str, Any] | Any]:
    """Return what summary.json holds: the figures of each limb."""
    return {
        "limbs": {shape.name: limb_summary(shape, records, costs.get(shape.name), quality) for shape in SHAPES},
        "machine": records.found.get("machine"),
    }


def limb_summary(
    shape: Shape, records: Records, cost: MeasuredCost | None, quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the figures of one limb, and of all eight tasks where those of its family stand on it."""
    tasks = {}
    for task in shape.family:
        on_limb = records.scores(shape, task)
        known = quality["tasks"][task]
        tasks[task] = {
            "metric": known["metric"],
            "joint": records.found.get(f"{shape.name}: joint training", {}).get(task),
            "on_limb": _mean(on_limb),
            "on_limb_sd": _deviation(on_limb),
            "on_trunk_same_price": _mean(records.scores(shape, task, where="trunk")),
            "on_limb_that_never_saw_it": _mean(records.scores(shape, task, where="limb without it")),
            "shipped": known["student"],
            "shipped_layers": known["layers"],
            "full_fine_tuning": known["full"],
            "kept": _mean(on_limb) / known["full"] if on_limb else None,
            "seeds": len(on_limb),
        }
    kept = {task: one["kept"] for task, one in tasks.items()}
    kept |= {task: quality["tasks"][task]["student"] / quality["tasks"][task]["full"] for task in shape.others}
    measured = None not in kept.values()
    return {
        "tap": shape.recipe.tap,
        "layers": shape.recipe.layers,
        "tasks": tasks,
        "retention_average": fmean(kept.values()) if measured else None,
        "retention_without_rte": fmean(one for task, one in kept.items() if task != "rte") if measured else None,
        "retention_min": min(kept.values()) if measured else None,
        "cost_share": cost.share if cost else None,
        "against_one_model": cost.against_one if cost else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def page(found: Mapping[str, Any], records: Records) -> str:
    """Return README.md."""
    rows = [
        (
            f"`{shape.name}`: {shape.recipe.layers} on tap {shape.recipe.tap}",
            ", ".join(shape.family) if shape.others else "all eight",
            percent(one["retention_average"]),
            percent(one["retention_without_rte"]),
            percent(one["retention_min"]),
            percent(one["cost_share"]),
            _times(one["against_one_model"]),
        )
        for shape in SHAPES
        for one in [found["limbs"][shape.name]]
    ]
    columns = (
        *("limb, layers", "trained on", "kept on average", "without RTE", "least kept"),
        *("cost of eight models", "throughput of one model"),
    )
    parts = [
        "# Limbs",
        "Layers on a tap of the default trunk, trained on several tasks together and then frozen. Heads of one folded "
        "layer stand on them, each trained alone, on labels unless it says otherwise. Tasks that a limb is not for "
        "stay on the trunk, as they ship. Kept is a head's dev score over that of full fine-tuning; that of RTE is "
        "little better than chance, so the average without it is the one to go by. Costs are of all eight tasks' "
        "models, one after another, against as many single-task models, in one run.",
        "\n".join(table(columns, rows)),
    ]
    for shape in SHAPES:
        parts += _section(shape, found["limbs"][shape.name], records.found.get(f"{shape.name}: note"))
    if shared := records.found.get("shared texts", {}):
        parts += [
            "## Texts that tasks share",
            "Dev texts (each of the two by itself), and dev pairs, that are in the train data of the other tasks, by "
            "their letters and digits. A limb has seen them with another label:",
            "\n".join(
                table(
                    ("task", *TASKS),
                    [
                        (task, *("–" if other == task else "{:,} ({:,})".format(*counts[other]) for other in TASKS))
                        for task, counts in shared.items()
                    ],
                )
            ),
        ]
    parts.append(
        f"Made by `python -m benchmarks.limbs --work DIR` on {records.found.get('machine', NOT_YET)}. The same as "
        "JSON: [summary.json](summary.json)."
    )
    return "\n\n".join(parts) + "\n"


def _section(shape: Shape, found: Mapping[str, Any], note: str | None) -> list[str]:
    """Return the part of the page about one limb."""
    recipe, columns, rows = shape.recipe, ["task", "metric"], []
    columns += [f"one layer on tap {shape.top} of the trunk"] if shape.trunk else []
    columns += ["trained jointly", "one layer on the limb", "shipped (layers)", "full fine-tuning", "kept on the limb"]
    columns += ["on a limb that never saw it"] if shape.left_out else []
    never_seen = {task for group in shape.left_out for task in group}
    for task, one in found["tasks"].items():
        spread = "" if one["on_limb_sd"] is None else f" ± {100 * one['on_limb_sd']:.1f}"
        trunk = one["on_trunk_same_price"]
        more = f" ({gain(one['on_limb'] - trunk)})" if trunk is not None and one["on_limb"] is not None else ""
        rows.append(
            (
                task,
                one["metric"],
                *([_score(trunk)] if shape.trunk else []),
                _score(one["joint"]),
                f"{_score(one['on_limb'])}{spread}{more}",
                f"{_score(one['shipped'])} ({one['shipped_layers']})",
                _score(one["full_fine_tuning"]),
                percent(one["kept"]),
                *([_score(one["on_limb_that_never_saw_it"]) if task in never_seen else "–"] if never_seen else []),
            )
        )
    layers = "1 layer" if recipe.layers == 1 else f"{recipe.layers} layers"
    groups = "; ".join(", ".join(group) for group in shape.left_out)
    without = f" A limb that never saw a task was trained without {groups}, for 2 epochs." if groups else ""
    return [
        f"## `{shape.name}`",
        f"{layers} on tap {recipe.tap}, trained on {', '.join(shape.family)} for {recipe.epochs} epochs"
        f"{_taught(shape)}. Dev scores in "
        "hundredths, means over seeds, with their deviation"
        f"{', and the gain over a head that costs the same' if shape.trunk else ''}. Shipped heads were distilled, "
        "most with whole layers of their own. The epochs of limb and heads were chosen on the same dev data."
        f"{without}",
        *([note] if note is not None else []),
        "\n".join(table(columns, rows)),
    ]


def _taught(shape: Shape) -> str:
    return f"; the shipped heads of {', '.join(shape.taught)} taught it and the heads on it" if shape.taught else ""


def _score(value: float | None) -> str:
    return points(value) if value is not None else NOT_YET


def _times(value: float | None) -> str:
    return f"{value:.2f} times" if value is not None else NOT_YET


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), help="The folder of limbs and caches.")
@click.option("--limbs", "names", default=",".join(shape.name for shape in SHAPES), show_default=True, metavar="A,B")
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
        shapes = [shape for shape in SHAPES if shape.name in _chosen("--limbs", names, [one.name for one in SHAPES])]
        wanted = _chosen("--steps", steps, STEPS)
        records = Records(study)
        if not only_summary:
            if work is None:
                raise UserError("--work: give a folder for limbs and caches")
            with progress_line() as tell:
                experiment = open_experiment(
                    ExperimentConfig(
                        tasks=tuple(load_tasks(TASKS, ROOT / "tasks")),
                        cache=work / "cache",
                        runs=work / "runs",
                        data_root=data,
                        device="cpu",
                        max_length=MAX_LENGTH,
                    )
                )
                records.add("machine", describe_machine())
                records.add("shared texts", {task: shared_texts(task, experiment) for task in TASKS})
                for shape in shapes:
                    run(shape, wanted, seeds, work, study, experiment, records, tell)
        costs = {shape.name: MeasuredCost.read(path) for shape in SHAPES if (path := _cost_file(study, shape)).exists()}
        found = summary(records, costs, json.loads(QUALITY.read_text(encoding="utf-8")))
        atomic_write_text(study / "summary.json", json.dumps(found, indent=1) + "\n")
        atomic_write_text(study / "README.md", page(found, records))
        click.echo(page(found, records))


def _chosen(option: str, given: str, allowed: Sequence[str]) -> list[str]:
    wanted = [one.strip() for one in given.split(",")]
    if unknown := [one for one in wanted if one not in allowed]:
        raise UserError(f"{option} {unknown[0]}: allowed are {', '.join(allowed)}")
    return wanted


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
    if "limb" in steps or "heads" in steps:
        branch, scores = new_limb(shape.name, shape.family, shape.recipe, work, experiment, tell, shape.taught)
        records.begin(shape, shape.family, "limb", branch.trunk.identity)
        records.add(f"{shape.name}: joint training", scores)
        # Small tasks first.
        for task in reversed(shape.family) if "heads" in steps else ():
            train_heads(shape, task, "limb", branch, seeds, records, tell)
    if "trunk" in steps and shape.trunk:
        for task in reversed(shape.family):
            train_heads(shape, task, "trunk", experiment, seeds, records, tell)
    for group in shape.left_out if "left-out" in steps else ():
        others = [one for one in shape.family if one not in group]
        recipe = shape.recipe.model_copy(update={"epochs": 2})
        branch, _ = new_limb(f"{shape.name}_without", others, recipe, work, experiment, tell)
        records.begin(shape, group, "limb without it", branch.trunk.identity)
        for task in group:
            train_heads(shape, task, "limb without it", branch, seeds, records, tell)
    if "cost" in steps:
        others: list[tuple[int, int, Query]] = [(tap, layers, "cls") for tap, layers in shape.others.values()]
        on_limb: list[tuple[int, int, Query]] = [(shape.top, 1, "cls")] * len(shape.family)
        limbs = {(shape.recipe.tap, shape.top): on_limb}
        measured = measure_plan_cost(others, load_trunk(), limbs=limbs, progress=tell)
        measured.write(_cost_file(study, shape))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.limbs")
