"""Utterances for an assistant, understood: intent and slots of SNIPS as two heads, beside full fine-tuning of each.

    python -m benchmarks.understanding --study docs/results/understanding

Runs the whole pipeline (baselines, search, plan, bundles) where its records are not in the study's folder yet, writes
the bundles to heads/, and the table to the study's README.md and summary.json. What was killed goes on.

Needs the data (see tasks/intent.toml). Everything is chosen on the dev set; the test set is only measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from torch import nn

from onetrunk.distill.cost_measurement import measure_costs
from onetrunk.distill.pipeline import make_plan, servable_options
from onetrunk.distill.plan_file import PlanFile
from onetrunk.distill.planned_heads import make_head
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import baseline_spec, run_baseline, save_baselines, search_task
from onetrunk.files import atomic_write_text
from onetrunk.machine import processor_model, usable_cores
from onetrunk.tasks import Task, load_task
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure, word_spans
from onetrunk.training.evaluation import raw_outputs
from onetrunk.training.experiment import SPLITS, Experiment, ExperimentConfig, open_experiment
from onetrunk.training.models import fine_tuned_model, trained_head
from onetrunk.training.objective import output_of
from onetrunk.training.trainer import find_run

ROOT = Path(__file__).resolve().parent.parent
TEST = "slu/snips/test.jsonl.gz"
INTENT, CRF, SOFTMAX = "intent", "slots", "slots_softmax"
# Of each task's full fine-tuning, on the dev set.
FLOOR = 0.99
# Of full fine-tuning and of teachers (a large task gets one fewer). With five, intents are a little worse; with three,
# slots are much worse.
EPOCHS = {INTENT: 3, CRF: 5, SOFTMAX: 5}
ROWS = (
    ("intent accuracy", (INTENT,)),
    ("slot F1, CRF", (CRF,)),
    ("slot F1, softmax", (SOFTMAX,)),
    ("whole utterance, CRF", (INTENT, CRF)),
    ("whole utterance, softmax", (INTENT, SOFTMAX)),
)
STUDY = ROOT / "docs" / "results" / "understanding"


@dataclass(frozen=True)
class Answers:
    """What one model answers for the texts of a split.

    Attributes:
        score: by its task's first metric.
        right: which texts are right as a whole: their intent, or all their spans. *Shape:* (texts,)
    """

    score: float
    right: np.ndarray


def settings_of(task: str) -> SearchSettings:
    """What its search may spend. All tasks have the same texts, so none has more to lend to another."""
    return SearchSettings(epochs=EPOCHS[task], other_texts=0)


def the_tasks() -> list[Task]:
    """Intent, slots with a CRF, and slots without."""
    intent, slots = (load_task(ROOT / "tasks" / f"{name}.toml") for name in (INTENT, CRF))
    return [intent, slots, slots.model_copy(update={"name": SOFTMAX, "options": {"output": "softmax"}})]


def answer(model: nn.Module, experiment: Experiment, task: Task, tap: int | None) -> Answers:
    """Asks a head, or a whole encoder where there is no tap, about the experiment's dev texts."""
    states = (
        experiment.tokens(task.name, "dev") if tap is None else experiment.states(task.name, "dev", [tap]).states[tap]
    )
    raw, targets = raw_outputs(model, states), experiment.targets(task.name, "dev").numpy()
    kind = get_kind(task.kind)
    scores = kind.output.scores(raw, task, output_of(model)).detach().numpy()
    predictions = kind.answers.predictions(scores, task)
    found = measure(task.metrics[:1], predictions, targets)[0][task.metric]
    if kind.by_token:
        right = np.array([answered == wanted for answered, wanted in word_spans(predictions, targets)])
    else:
        right = predictions == targets
    return Answers(found, right)


# Task, "full" or "head", and split -> what that model answers.
Found = dict[tuple[str, str, str], Answers]
Models = Iterator[tuple[str, str, nn.Module]]


def models(experiment: Experiment, plans: dict[str, PlanFile]) -> Models:
    """Of each task, the fine-tuned encoder and the head, with where the head stands."""
    for task in experiment.tasks:
        record = find_run(baseline_spec(task, experiment, settings_of(task)), experiment)
        assert record is not None, "the baselines have been trained"
        yield task, "", fine_tuned_model(record, experiment)
        run = experiment.store.by_key(plans[task].tasks[task].run)
        yield (
            task,
            f"tap {run.spec.recipe.resolved_tap}, layers {run.spec.recipe.layers}",
            trained_head(run, experiment),
        )


def study_all(experiment: Experiment, study: Path) -> dict[str, PlanFile]:
    """Baselines, searches and a plan for each task; what has a record is not done again."""
    for task in experiment.tasks:
        settings = settings_of(task)
        run_baseline(task, experiment, settings, tell)
        save_baselines(task, experiment, settings)
        search_task(task, experiment, settings, tell)
    table = measure_costs(experiment.trunk, progress=tell)
    return {
        task: make_plan(
            study / f"{task}.plan.toml",
            servable_options(experiment.config.runs, [task]),
            table,
            floor_task=FLOOR,
            floor_average=FLOOR,
            most_share=None,
        )
        for task in experiment.tasks
    }


def compare(found: Found) -> dict[str, tuple[float, float]]:
    """What is measured, on which split -> full fine-tuning and heads."""
    return {
        f"{split} | {what}": tuple(_value(found, names, role, split) for role in ("full", "head"))
        for split in ("dev", "test")
        for what, names in ROWS
    }


def _value(found: Found, names: tuple[str, ...], role: str, split: str) -> float:
    """A model's score, or of several models the share of texts that are right in all of them."""
    if len(names) == 1:
        return found[names[0], role, split].score
    return float(np.logical_and(*(found[name, role, split].right for name in names)).mean())


def page(compared: dict[str, tuple[float, float]], where: dict[str, str], rows: tuple[int, int, int]) -> str:
    """The table, as Markdown; ``rows`` are the utterances of train, dev and test."""
    train, dev, test = (f"{count:,}" for count in rows)
    lines = [
        f"| {what} | {100 * full:.2f} | {100 * head:.2f} | {100 * head / full:.2f}% |"
        for what, (full, head) in compared.items()
    ]
    return "\n".join(
        [
            "# Understanding utterances",
            "",
            f"`python -m benchmarks.understanding`: SNIPS ({train} train utterances, {dev} dev, {test} test), "
            f"one seed, on {processor_model()}, {usable_cores()} cores. Full fine-tuning is the whole encoder "
            "for each task; heads stand on the frozen trunk. All choices were made on dev; test was only measured. "
            "Spans count by words, as in seqeval. A whole utterance is right where its intent and all its slots are.",
            "",
            "| split | what | full fine-tuning | heads | kept |",
            "|---|---|---|---|---|",
            *lines,
            "",
            "*Kept* is of the full fine-tuning in the same row. "
            f"Of {test} test utterances, one is {100 / rows[2]:.2f} points.",
            "",
            f"Heads, the cheapest that keep {FLOOR:.0%} of their own full fine-tuning on dev:",
            "",
            *(f"- {name}: {place}" for name, place in where.items()),
            "",
            f"`{INTENT}` and `{CRF}` ship in heads/. `search-heads make docs/results/understanding/{CRF}.plan.toml` "
            "makes one anew; what it was chosen from is in `runs/`.",
            "",
        ]
    )


def tell(what: str, done: int, total: int) -> None:
    """Says what is being done, in one line."""
    click.echo(f"\r{what} {done}/{total}   ", nl=False, err=True)


@click.command()
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, show_default=True)
@click.option("--heads", type=click.Path(path_type=Path), default=ROOT / "heads", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Where slu/snips is looked for first.")
def main(study: Path, heads: Path, data: Path | None) -> None:
    """Trains what is missing, and writes bundles and table."""
    tasks = the_tasks()
    config = ExperimentConfig(tasks=tuple(tasks), runs=study / "runs", data_root=data)
    experiment = open_experiment(config)
    plans = study_all(experiment, study)
    for name in (INTENT, CRF):
        make_head(name, plans[name], experiment, heads=heads, progress=tell)
    on_test = tuple(task.model_copy(update={"dev": TEST}) for task in tasks)
    benches = {"dev": experiment, "test": open_experiment(replace(config, tasks=on_test))}
    found, where = Found(), {}
    for name, stands, model in models(experiment, plans):
        tap = plans[name].tasks[name].tap if stands else None
        where[name] = stands
        for split, asked in benches.items():
            found[name, "head" if stands else "full", split] = answer(model, asked, experiment.task(name), tap)
    compared = compare(found)
    atomic_write_text(study / "summary.json", json.dumps(compared, indent=2) + "\n")
    train, dev = (len(experiment.examples(INTENT, split)) for split in SPLITS)
    rows = (train, dev, len(benches["test"].examples(INTENT, "dev")))
    atomic_write_text(study / "README.md", page(compared, where, rows))
    click.echo(f"\n{study / 'README.md'}")


if __name__ == "__main__":
    main()
