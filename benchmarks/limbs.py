"""What limbs are worth: heads of one layer on a limb, beside heads of the same price on the trunk, and longer ones.

    python -m benchmarks.limbs --work /tmp/limbs
    python -m benchmarks.limbs --work /tmp/limbs --steps limb,heads --seeds 1
    python -m benchmarks.limbs --summary

1. ``limb``: one layer on tap 2 is trained on all pair tasks of GLUE together.
2. ``heads``: each task gets heads of one layer on the limb, and on tap 3 of the trunk, which cost the same; labels
   alone, several seeds.
3. ``left-out``: a limb is trained without one of the small tasks, and heads for that task stand on it: what a limb is
   worth to a task that it has never seen.
4. ``cost``: all eight tasks, those of pairs on the limb, are timed beside eight single-task models in one run.

Records, README.md and summary.json lie in docs/results/limbs. What was killed goes on. Needs the GLUE data (see
tasks/sst2.toml), found by --data or ONETRUNK_DATA.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
from onetrunk.nn.limb import load_limb
from onetrunk.nn.trunk import load_trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.examples import normalized
from onetrunk.tasks.rows import Text
from onetrunk.training.compute import describe_machine
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.limb import LimbRecipe, train_limb
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "docs" / "results" / "limbs"
QUALITY = ROOT / "docs" / "results" / "quality" / "summary.json"
FAMILY = ("mnli", "qnli", "qqp", "mrpc", "stsb", "rte")
# Small enough that a family can teach them something.
LEFT_OUT = ("rte", "mrpc", "stsb")
STEPS = ("limb", "heads", "left-out", "cost")
TAP, LAYERS = 2, 1
EPOCHS, EPOCHS_LEFT_OUT = 4, 2
EPOCHS_OF_HEADS = 6
MAX_LENGTH = 128
_SIGNS = re.compile(r"[\W_]+")
# The other two of the eight tasks, as the plan of docs/results/quality has them.
OTHERS = (("cola", 1, 3), ("sst2", 3, 1))


class Records:
    """What was measured, by key; each is written at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "records.json"
        self.found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}

    def begin(self, heads: str, limb: str) -> None:
        """Forget heads that stood on another limb, as one that is trained anew on another machine is."""
        if self.found.get(f"limb of {heads}") != limb:
            self.found = {key: one for key, one in self.found.items() if f"{heads} seed " not in key}
            self.add(f"limb of {heads}", limb)

    def add(self, key: str, value: object) -> None:
        """Keep a record."""
        self.found[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self._path, json.dumps(dict(sorted(self.found.items())), indent=1) + "\n")

    def scores(self, start: str) -> list[float]:
        """Return the scores of all seeds of a head."""
        return [value["score"] for key, value in self.found.items() if key.startswith(f"{start} seed ")]


def new_limb(name: str, tasks: Sequence[str], epochs: int, work: Path, experiment: Experiment, tell: ProgressCallback):
    """Train a limb on some tasks, or find it, and return the experiment of heads on it, and its dev scores."""
    recipe = LimbRecipe(tap=TAP, layers=LAYERS, epochs=epochs, max_length=MAX_LENGTH)
    trained = train_limb(name, tasks, recipe, experiment, limbs=work / "limbs", progress=tell)
    branch = load_limb(trained.folder).branch(experiment.trunk)
    return Experiment(experiment.config, branch), {task: one.score for task, one in trained.spec.tasks.items()}


def train_heads(task: str, where: str, experiment: Experiment, seeds: int, records: Records, tell: ProgressCallback):
    """Train heads of one layer on tap 3: the trunk's, or the top of a limb."""
    settings = SearchSettings()
    for seed in range(seeds):
        key = f"{task} on {where} seed {seed}"
        if key in records.found:
            continue
        recipe = settings.probing(tap=TAP + LAYERS, seed=seed, max_length=MAX_LENGTH, epochs=EPOCHS_OF_HEADS)
        run = execute(RunSpec(task=task, role="fork", recipe=recipe), experiment, weights=False, progress=tell)
        records.add(key, {"score": run.score, "best_epoch": run.best_epoch, "cpu_seconds": run.cpu_seconds})


def shared_texts(task: str, experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Return how many dev texts of a task, and how many of its dev pairs, are in the train data of each other task.

    Texts are compared by their letters and digits: the same sentence has blanks before its punctuation in one corpus,
    and none in another.
    """
    dev_texts, dev_pairs = _texts_and_pairs(experiment.examples(task, "dev").texts)
    found = {}
    for other in FAMILY:
        if other != task:
            texts, pairs = _texts_and_pairs(experiment.examples(other, "train").texts)
            found[other] = (len(dev_texts & texts), len(dev_pairs & pairs))
    return found


def _texts_and_pairs(texts: Iterable[Text]) -> tuple[set[str], set[frozenset[str]]]:
    pairs = [[_SIGNS.sub("", part) for part in normalized(text)] for text in texts]
    return {part for pair in pairs for part in pair}, {frozenset(pair) for pair in pairs}


def summary(records: Records, cost: MeasuredCost | None, quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return what summary.json holds."""
    tasks = {}
    for task in FAMILY:
        limb, trunk = records.scores(f"{task} on limb"), records.scores(f"{task} on trunk")
        left_out = records.scores(f"{task} on limb without it")
        known = quality["tasks"][task]
        tasks[task] = {
            "metric": known["metric"],
            "on_limb": _mean(limb),
            "on_limb_sd": _deviation(limb),
            "on_trunk_same_price": _mean(trunk),
            "on_limb_that_never_saw_it": _mean(left_out),
            "shipped": known["student"],
            "shipped_layers": known["layers"],
            "full_fine_tuning": known["full"],
            "kept": _mean(limb) / known["full"] if limb else None,
            "seeds": len(limb),
        }
    others = [quality["tasks"][name] for name, *_ in OTHERS]
    kept = [one["kept"] for one in tasks.values()]
    of_others = [one["student"] / one["full"] for one in others]
    all_kept = [*kept, *of_others]
    without_rte = [*(one["kept"] for task, one in tasks.items() if task != "rte"), *of_others]
    return {
        "tasks": tasks,
        "retention_average": fmean(all_kept) if None not in kept else None,
        "retention_without_rte": fmean(without_rte) if None not in kept else None,
        "retention_min": min(all_kept) if None not in kept else None,
        "cost_share": cost.share if cost else None,
        "against_one_model": cost.against_one if cost else None,
        "machine": records.found.get("machine"),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def page(found: Mapping[str, Any], records: Records) -> str:
    """Return README.md."""
    rows = []
    for task, one in found["tasks"].items():
        limb, trunk = one["on_limb"], one["on_trunk_same_price"]
        spread = "" if one["on_limb_sd"] is None else f" ± {100 * one['on_limb_sd']:.1f}"
        rows.append(
            (
                task,
                one["metric"],
                _score(trunk),
                f"{_score(limb)}{spread}",
                gain(limb - trunk) if limb is not None and trunk is not None else NOT_YET,
                f"{_score(one['shipped'])} ({one['shipped_layers']})",
                _score(one["full_fine_tuning"]),
                percent(one["kept"]),
                _score(one["on_limb_that_never_saw_it"]) if task in LEFT_OUT else "–",
            )
        )
    columns = (
        *("task", "metric", "one layer on tap 3", "one layer on the limb", "difference", "shipped (layers)"),
        *("full fine-tuning", "kept on the limb", "on a limb that never saw it"),
    )
    shared = records.found.get("shared texts", {})
    parts = [
        "# Limbs",
        f"One layer on tap {TAP} of the default trunk, trained on {', '.join(FAMILY)} together for {EPOCHS} epochs, "
        "then frozen. Heads of one folded layer stand on it and are trained alone, on labels, without a teacher. A "
        "head on tap 3 of the trunk costs the same. Shipped heads were distilled, most with a whole layer "
        "of their own. Dev scores in hundredths, means over seeds.",
        "\n".join(table(columns, rows)),
        f"With the shipped heads of CoLA and SST-2 beside these, all eight tasks keep "
        f"**{percent(found['retention_average'])}** of full fine-tuning on average, and without RTE, where that is "
        f"little better than chance, {percent(found['retention_without_rte'])}; the least "
        f"**{percent(found['retention_min'])}**. They cost **{percent(found['cost_share'])}** of eight single-task "
        f"models, and answer {_times(found['against_one_model'])} as many texts a second as ONE single-task model, "
        "measured in one run, a model after another.",
        "The epoch of the limb and that of each head were chosen on the same dev data. A limb that never saw a task "
        f"was trained on the five others for {EPOCHS_LEFT_OUT} epochs.",
    ]
    if shared:
        parts += [
            "Dev texts (each of the two by itself), and dev pairs, that are in the train data of the other tasks, by "
            "their letters and digits. The limb has seen them with another label:",
            "\n".join(
                table(
                    ("task", *FAMILY),
                    [
                        (task, *("–" if other == task else "{:,} ({:,})".format(*counts[other]) for other in FAMILY))
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


def _score(value: float | None) -> str:
    return points(value) if value is not None else NOT_YET


def _times(value: float | None) -> str:
    return f"{value:.2f} times" if value is not None else NOT_YET


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), help="The folder of limbs and caches.")
@click.option("--steps", default=",".join(STEPS), show_default=True, metavar="A,B")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds of each head.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data are. [default: $ONETRUNK_DATA]")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, help="Where results go.")
@click.option("--summary", "only_summary", is_flag=True, help="Only write the page, from the records.")
def main(work: Path | None, steps: str, seeds: int, data: Path | None, study: Path, only_summary: bool) -> None:
    """Measure what limbs are worth, and write the page."""
    with errors_end_command():
        wanted = [one.strip() for one in steps.split(",")]
        if unknown := [one for one in wanted if one not in STEPS]:
            raise UserError(f"--steps {unknown[0]}: allowed are {', '.join(STEPS)}")
        records = Records(study)
        if not only_summary:
            if work is None:
                raise UserError("--work: give a folder for limbs and caches")
            with progress_line() as tell:
                run(wanted, seeds, work, study, data, records, tell)
        cost = MeasuredCost.read(study / "share.json") if (study / "share.json").exists() else None
        found = summary(records, cost, json.loads(QUALITY.read_text(encoding="utf-8")))
        atomic_write_text(study / "summary.json", json.dumps(found, indent=1) + "\n")
        atomic_write_text(study / "README.md", page(found, records))
        click.echo(page(found, records))


def run(
    steps: Sequence[str],
    seeds: int,
    work: Path,
    study: Path,
    data: Path | None,
    records: Records,
    tell: ProgressCallback,
) -> None:
    """Do the steps that are asked for; what has a record is not done again."""
    config = ExperimentConfig(
        tasks=tuple(load_tasks(FAMILY, ROOT / "tasks")),
        cache=work / "cache",
        runs=work / "runs",
        data_root=data,
        device="cpu",
        max_length=MAX_LENGTH,
    )
    experiment = open_experiment(config)
    records.add("machine", describe_machine())
    if "limb" in steps or "heads" in steps:
        on_limb, scores = new_limb("pairs", FAMILY, EPOCHS, work, experiment, tell)
        records.begin(" on limb", on_limb.trunk.identity)
        records.add("joint training", scores)
        records.add("shared texts", {task: shared_texts(task, experiment) for task in FAMILY})
        # Small tasks first.
        for task in reversed(FAMILY) if "heads" in steps else ():
            train_heads(task, "limb", on_limb, seeds, records, tell)
            train_heads(task, "trunk", experiment, seeds, records, tell)
    for task in LEFT_OUT if "left-out" in steps else ():
        if len(records.scores(f"{task} on limb without it")) < seeds:
            others = [one for one in FAMILY if one != task]
            on_limb, _ = new_limb(f"without_{task}", others, EPOCHS_LEFT_OUT, work, experiment, tell)
            records.begin(f"{task} on limb without it", on_limb.trunk.identity)
            train_heads(task, "limb without it", on_limb, seeds, records, tell)
    if "cost" in steps:
        heads = [(TAP + LAYERS, 1, "cls")] * len(FAMILY) + [(tap, layers, "cls") for _, tap, layers in OTHERS]
        measured = measure_plan_cost(heads, load_trunk(), limbs=[(TAP, TAP + LAYERS)], progress=tell)  # type: ignore[arg-type]
        measured.write(study / "share.json")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.limbs")
