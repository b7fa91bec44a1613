"""The base-size trunk's page and figures, from the records: what is finished, what is missing, what it will take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.linear import linear_table, read_linear
from benchmarks.study.measured_cost import MeasuredCost
from onetrunk.distill.markdown import NOT_YET, over_seeds, percent, points, seconds, table, times
from onetrunk.distill.pipeline import make_plan, servable_options
from onetrunk.distill.plan_file import PlanFile
from onetrunk.distill.report import provenance, search_table, write_page
from onetrunk.distill.results import SearchRecords, SearchResults, TaskResult
from onetrunk.distill.settings import SearchSettings

_TOKENS = 128
# Its name in docs/results/limbs.
_LIMB = "base"

# BERT-base as transformers' example fine-tunes it: bert-base-cased, three epochs (MRPC five), one seed, dev sets. Where
# a task has two metrics, their mean, as here.
PUBLISHED = {
    "cola": 0.5653,
    "mnli": 0.8391,
    "mrpc": (0.8885 + 0.8407) / 2,
    "qnli": 0.9066,
    "qqp": (0.9071 + 0.8749) / 2,
    "rte": 0.6570,
    "sst2": 0.9232,
    "stsb": (0.8864 + 0.8848) / 2,
}
# Tasks of which train and dev sets are whole here.
WHOLE = ("cola", "mrpc", "rte", "stsb")
# What the search of the default trunk cost, in full fine-tunings: docs/results/quality.
_USUAL_SEARCH = 1.76


@dataclass(frozen=True)
class Goal:
    """What one of the study's figures should come to.

    Attributes:
        what: What the figure is of.
        wanted: The goal, as the page says it.
        figure: Its name in summary.json.
        shown: Writes the figure, or that there is none.
        is_met: Whether a figure meets the goal.
    """

    what: str
    wanted: str
    figure: str
    shown: Callable[[float | None], str]
    is_met: Callable[[float], bool]


GOALS = (
    Goal(
        "kept on average over the eight tasks",
        "at least 99.6%",
        "retention_average",
        lambda value: percent(value, 2),
        lambda value: value >= 0.996,
    ),
    Goal(
        "kept by the task that keeps least",
        "at least 97.0%",
        "retention_min",
        lambda value: percent(value, 2),
        lambda value: value >= 0.97,
    ),
    Goal(
        "measured cost of all eight, against eight single-task models",
        "at most 20%, aim 15%",
        "cost_share",
        percent,
        lambda value: value <= 0.20,
    ),
    Goal(
        "throughput of all eight, against ONE single-task model, 128 tokens",
        "at least 0.75x, aim 1.00x",
        "against_one_model",
        times,
        lambda value: value >= 0.75,
    ),
    Goal(
        "the search (of a limb: its training and that of its heads), against one full fine-tuning of each",
        "at most 2x",
        "search_cost_ratio",
        times,
        lambda value: value <= 2.0,
    ),
)


@dataclass(frozen=True)
class Shape:
    """Where a head stands and how long it is, for its cost."""

    tap: int
    layers: int
    limb: str = ""
    task: str = "any"

    @property
    def whole_layers(self) -> int:
        """The layers that run whole."""
        return self.layers - 1


_EIGHT = {
    "8 heads of one layer on tap 8": [Shape(8, 1)] * 8,
    "8 heads of one layer on tap 6": [Shape(6, 1)] * 8,
    "7 heads of one layer on tap 8, one of five on tap 3": [*[Shape(8, 1)] * 7, Shape(3, 5)],
    "7 heads of one layer on tap 6, one of five on tap 3": [*[Shape(6, 1)] * 7, Shape(3, 5)],
    "7 heads of two layers on tap 6, one of five on tap 3": [*[Shape(6, 2)] * 7, Shape(3, 5)],
}


@dataclass(frozen=True)
class Study:
    """All that is recorded in the study's folder.

    Attributes:
        tasks: All tasks, finished or not.
        results: The figures of the tasks in the plan.
        share: The plan's measured cost; None where it has not been measured, or was of another plan's heads.
        sizes: Rows and tokens of each task and the measured speed; None before they have been measured.
        limb: What was measured of heads on a limb of this trunk, as in docs/results/limbs/summary.json; None before
            all tasks' heads on it were.
    """

    tasks: tuple[str, ...]
    results: SearchResults
    share: MeasuredCost | None
    sizes: Mapping[str, Any] | None
    limb: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path, tasks: Sequence[str]) -> Study:
        """Read the folder.

        Raises:
            UserError: The folder does not exist, or a file in it is malformed.
        """
        results = SearchResults.of(SearchRecords.read(folder))
        share, sizes, plan = None, None, results.records.plan
        if plan is not None and (folder / "share.json").is_file():
            found = MeasuredCost.read(folder / "share.json")
            planned = sorted((head.tap, head.layers, head.query) for head in plan.tasks.values())
            share = found if (found.trunk, sorted(found.heads)) == (plan.trunk, planned) else None
        if (folder / "sizes.json").is_file():
            sizes = json.loads((folder / "sizes.json").read_bytes())
        limbs, limb = folder.parent / "limbs" / "summary.json", None
        if limbs.is_file():
            limb = json.loads(limbs.read_bytes())["limbs"].get(_LIMB)
        return cls(
            tuple(tasks), results, share, sizes, limb if limb and limb["retention_average"] is not None else None
        )

    @property
    def finished(self) -> tuple[str, ...]:
        """The tasks in the plan, in the study's order."""
        plan = self.results.records.plan
        return tuple(task for task in self.tasks if plan is not None and task in plan.tasks)

    @property
    def missing(self) -> dict[str, str]:
        """Task -> what it still lacks."""
        lacks = {}
        for task in self.tasks:
            if task in self.finished:
                continue
            search = self.results.records.studies["search"].get(task)
            if not self.results.records.trials("baseline", task):
                lacks[task] = "full fine-tuning and search"
            elif search is None or not search.complete:
                lacks[task] = "search"
            else:
                lacks[task] = "measured costs, and so a plan"
        return lacks

    @property
    def figures(self) -> dict[str, Any]:
        """The figures over the finished tasks; None is what has not been measured."""
        results, finished = self.results, self.finished
        scores = [result.student.mean for result in results.tasks if result.student and result.task in finished]
        full = [result.full.mean for result in results.tasks if result.full and result.task in finished]
        return {
            "retention_average": results.retention_average if finished else None,
            "retention_min": results.retention_min if finished else None,
            "cost_share": self.share.share if self.share else None,
            "against_one_model": self.share.against_one if self.share else None,
            "search_cost_ratio": results.cost.ratio if results.cost and finished else None,
            "glue_average": fmean(scores) if scores else None,
            "glue_average_full": fmean(full) if full else None,
        }

    @property
    def limb_figures(self) -> dict[str, Any] | None:
        """The same figures of heads on the limb, which no search chose; None before they were measured."""
        if self.limb is None:
            return None
        scores = [one["on_limb"] for one in self.limb["tasks"].values()]
        names = ("retention_average", "retention_min", "cost_share", "against_one_model")
        found = {**{name: self.limb[name] for name in names}, "glue_average": fmean(scores)}
        seconds, cost = self.limb["train_seconds"], self.results.cost
        if seconds is not None and cost is not None and not self.missing:
            found["search_cost_ratio"] = seconds / cost.full_seconds
        return found


def write_plan_of(folder: Path, *, floor_task: float, floor_average: float) -> PlanFile | None:
    """Choose a plan over the finished tasks and write it; None where there is none, or no costs are measured.

    Args:
        folder: The study's folder.
        floor_task: The least share of full fine-tuning's score that every task keeps.
        floor_average: The same on average.

    Raises:
        UserError: A record is broken.
    """
    records = SearchRecords.read(folder) if folder.is_dir() else None
    if records is None or records.costs is None:
        return None
    searches = records.studies["search"]
    finished = [
        task for task, search in sorted(searches.items()) if search.complete and records.trials("baseline", task)
    ]
    if not finished:
        return None
    return make_plan(
        folder / "plan.toml",
        servable_options(folder / "runs", finished),
        records.costs,
        floor_task=floor_task,
        floor_average=floor_average,
        most_share=None,
    )


def write_base_report(folder: Path, tasks: Sequence[str]) -> list[Path]:
    """Write ``README.md`` and ``summary.json`` into the study's folder. Nothing is trained or measured.

    Figures of all tasks are null until every task is finished. Those of the finished ones stand under ``finished``.

    Args:
        folder: The study's folder.
        tasks: All tasks of the study, in the order in which they are worked on.

    Returns:
        The paths that were written.

    Raises:
        UserError: The folder does not exist, or a file in it is malformed.
    """
    study = Study.read(folder, tasks)
    sections = [
        ("# A base-size trunk", _headline(study)),
        ("## Goals", _goals(study)),
        ("## Tasks", _task_table(study)),
        ("## On a limb", _limb_table(study)),
        ("## What is in the embedding already", linear_table(study.results, read_linear(folder))),
        ("## Beside published figures", _published_table(study)),
        ("## The search", search_table(study.results)),
        ("## Cost", _cost_tables(study)),
        ("## What is left", _hours_table(study)),
        ("## The bundles", _bundles(study)),
        ("## How it was measured", provenance(study.results, "python -m benchmarks.base --summary")),
    ]
    return write_page(folder, sections, summary_of(study))


def summary_of(study: Study) -> dict[str, Any]:
    """Return what ``summary.json`` holds."""
    complete, figures = not study.missing, study.figures
    return {
        **{name: value if complete else None for name, value in figures.items()},
        "complete": complete,
        "tasks_missing": study.missing,
        "finished": {"tasks": list(study.finished), **figures},
        "on_limb": study.limb_figures,
        "tasks": {task: _task_values(task, study) for task in study.tasks},
        "trunk": "all-mpnet-base-v2",
        "machine": study.results.machines,
    }


def hours(task: str, sizes: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the estimated hours of one core for a task: full fine-tuning, the trunk's pass, and the search.

    A training passes each train token forwards and backwards, about three forward passes, and the dev texts once an
    epoch. The search is estimated by what that of the default trunk took.

    Args:
        task: The task.
        sizes: The content of ``sizes.json``.
    """
    size, token_s, step_s = sizes["tasks"][task], sizes["cpu_seconds_per_token"], sizes["cpu_seconds_per_step"]
    recipe = SearchSettings().tuning(size["train_rows"], tap=0, layers=12, seed=0, max_length=_TOKENS)
    steps = math.ceil(size["train_rows"] / recipe.batch_size)
    full_s = recipe.epochs * (steps * step_s + (size["train_tokens"] + size["dev_tokens"] / 3) * token_s)
    trunk_s = (size["train_tokens"] + size["dev_tokens"]) / 3 * token_s
    return full_s / 3600, trunk_s / 3600, _USUAL_SEARCH * full_s / 3600


def _headline(study: Study) -> list[str]:
    figures, finished = study.figures, study.finished
    names = f" ({', '.join(finished)})" if finished else ""
    lines = [
        "The paper's table for all-mpnet-base-v2, 12 layers of width 768 (`--trunk base`). The study is worked through "
        "by records, as machines have time; this page is made from them, and says what is not known yet.",
        "",
        f"- Tasks finished: **{len(finished)} of {len(study.tasks)}**{names}",
        f"- Kept of full fine-tuning on these, on average: **{percent(figures['retention_average'])}**, least "
        f"**{percent(figures['retention_min'])}**",
        f"- Measured cost of these, against as many single-task models: **{percent(figures['cost_share'])}**",
        "",
        "The same as JSON: [summary.json](summary.json).",
    ]
    lacking = [f"- {task}: {what}" for task, what in study.missing.items()]
    return [*lines, "", "Missing:", "", *lacking] if lacking else lines


def _goals(study: Study) -> list[str]:
    figures, on_limb = study.figures, study.limb_figures
    rows = []
    for goal in GOALS:
        value = figures[goal.figure]
        row = [goal.what, goal.wanted, goal.shown(value), _verdict(goal, value, len(study.missing))]
        if on_limb is not None:
            value = on_limb.get(goal.figure)
            row += [goal.shown(value), _verdict(goal, value)] if goal.figure in on_limb else ["–", "–"]
        rows.append(row)
    of = "the finished tasks" if study.missing else "all eight"
    columns = ["what", "goal", f"heads on the trunk, {of}", "verdict"]
    columns += ["heads on a limb, all eight", "verdict"] if on_limb is not None else []
    return [
        *table(columns, rows),
        "",
        "Kept on average is the mean score over full fine-tuning's mean score. The last row compares processor time; "
        "of a limb's own training it is the time by the clock, on another kind of processor than some of the "
        "fine-tunings ran on. The trunk's passes are in neither.",
    ]


def _verdict(goal: Goal, value: float | None, missing: int = 0) -> str:
    if value is None:
        return NOT_YET
    if missing:
        return f"unknown: {missing} tasks are missing"
    return "met" if goal.is_met(value) else "**missed**"


def _limb_table(study: Study) -> list[str]:
    limb = study.limb
    if limb is None:
        return [f"Heads on a limb: {NOT_YET} (`python -m benchmarks.limbs --limbs base`)."]
    layers = "one layer" if limb["layers"] == 1 else f"{limb['layers']} layers"
    rows = [
        (
            task,
            points(one["full_fine_tuning"]) if one["full_fine_tuning"] is not None else NOT_YET,
            points(one["plan"]) if one["plan"] is not None else NOT_YET,
            f"{points(one['on_limb'])} ({one['seeds']})",
            percent(one["kept"]),
        )
        for task, one in limb["tasks"].items()
    ]
    return [
        f"A limb is {layers} on tap {limb['tap']} that are trained on all eight tasks together and then frozen; a head "
        "of one folded layer for each task stands on it, trained alone. It is a shared decision, as the trunk is: "
        "heads still change one by one, and a task can leave it for the trunk. More about it: [limbs](../limbs/).",
        "",
        *table(("task", "full fine-tuning", "head on the trunk", "head on the limb (seeds)", "kept"), rows),
    ]


def _task_table(study: Study) -> list[str]:
    records = study.results.records
    searches = {search.task: search for search in study.results.searches}
    rows = []
    for task in study.tasks:
        result, search = TaskResult.of(task, records), searches.get(task)
        ratio = search.seconds / search.full_seconds if search and search.full_seconds else None
        where = f"tap {result.tap}, layers {result.layers}" if result.student else NOT_YET
        rows.append(
            (
                task,
                result.metric or "–",
                over_seeds(result.full),
                points(result.teacher) if result.teacher else "–",
                over_seeds(result.student),
                where,
                percent(result.retention),
                times(ratio),
            )
        )
    columns = ("task", "metric", "full fine-tuning", "teacher", "head", "where", "kept", "search")
    return [
        *table(columns, rows),
        "",
        "Dev scores in hundredths (number of seeds). Search: its processor time over one full fine-tuning's. A teacher "
        "is missing where a head learned from the labels alone. Best epochs and heads are chosen on the same dev data, "
        "so scores are a little optimistic.",
    ]


def _published_table(study: Study) -> list[str]:
    rows = []
    for task in study.tasks:
        result = TaskResult.of(task, study.results.records)
        comparable = "yes" if task in WHOLE else "no: a part of the train data"
        rows.append((task, over_seeds(result.full), over_seeds(result.student), points(PUBLISHED[task]), comparable))
    return [
        *table(("task", "full fine-tuning", "head", "BERT-base, published", "comparable"), rows),
        "",
        "Published: bert-base-cased on GLUE's dev sets, by the example of transformers (three epochs at 2e-5, MRPC "
        "five, one seed, last epoch). Here: another encoder, trained for sentence embeddings, the best epoch on dev. "
        "The paper reports averages over the eight tasks, on whole data, of 82.8 for full fine-tuning and 82.5 for its "
        "mixed configuration at 34.3% of the layers. QQP's dev set is not GLUE's, MNLI's is a half of it.",
    ]


def _cost_tables(study: Study) -> list[str]:
    costs = study.results.records.costs
    lines = []
    if study.share is not None:
        lines += [
            f"Measured directly, the finished tasks' heads at {_TOKENS} tokens: {percent(study.share.share)} of "
            f"{len(study.share.heads)} single-task models, {times(study.share.against_one)} the throughput of one.",
            "",
        ]
    if costs is None:
        return [*lines, f"The costs of the parts: {NOT_YET}."]
    parts = costs.per_text(tokens=_TOKENS)
    sizes = " and ".join(str(bucket.batch_size) for bucket in costs.buckets if bucket.tokens == _TOKENS)
    rows = [
        (f"trunk up to tap {tap}", f"{parts.trunk_ms[tap]:.1f}", percent(parts.trunk_ms[tap] / parts.single_ms))
        for tap in (3, 6, 8, 10)
        if tap < len(parts.trunk_ms)
    ]
    rows += [
        (what, f"{value:.2f}", percent(value / parts.single_ms))
        for what, value in (
            ("one whole layer of a head", parts.layer_ms),
            ("a head of one folded layer", parts.folded_ms),
            ("one single-task model", parts.single_ms),
        )
    ]
    plans = []
    for what, shapes in _EIGHT.items():
        if all(shape.tap + shape.layers <= parts.depth for shape in shapes):
            cost = parts.cost(shapes)
            plans.append((what, f"{cost.total_ms:.1f}", percent(cost.share), times(parts.single_ms / cost.total_ms)))
    return [
        *lines,
        f"Parts at {_TOKENS} tokens in ONNX Runtime, one thread, milliseconds of processor time a text, medians "
        f"of {costs.repeats} rounds, at batches of {sizes}:",
        "",
        *table(("part", "ms", "of a single-task model"), rows),
        "",
        "What all eight tasks would cost with heads of some shapes, by these parts. Which shapes keep enough is what "
        "the search finds out:",
        "",
        *table(("heads", "ms", "of eight single-task models", "throughput against one"), plans),
    ]


def _hours_table(study: Study) -> list[str]:
    if not study.missing:
        return ["Nothing: all tasks are finished."]
    command = f"    python -m benchmarks.base --tasks {','.join(study.missing)}"
    lines = ["A task is taken up, or goes on, with:", "", command, ""]
    if study.sizes is None:
        return [*lines, f"The speed of training: {NOT_YET} (`--speed`)."]
    sizes, rows, total = study.sizes, [], 0.0
    for task, lacks in study.missing.items():
        full, trunk, search = hours(task, sizes)
        left = (full if "full" in lacks else 0.0) + (trunk + search if "search" in lacks else 0.0)
        total += left
        size = sizes["tasks"][task]
        rows.append((task, f"{size['train_tokens']:,}", *(f"{value:.1f}" for value in (full, trunk, search, left))))
    columns = ("task", "train tokens", "full fine-tuning, hours", "trunk's pass", "search", "left")
    return [
        *lines,
        *table(columns, [*rows, ("all", "", "", "", "", f"{total:.1f}")]),
        "",
        "Hours of one core, estimated from the first steps of two full fine-tunings: "
        f"{sizes['cpu_seconds_per_step']:.1f} s of processor time a step and "
        f"{1000 * sizes['cpu_seconds_per_token']:.1f} ms a token, on {sizes['machine']}, at a load of "
        f"{sizes['load']:.0f}. Processor time itself rises with the load, since programs displace each other's data "
        f"from the caches. The search is estimated at {_USUAL_SEARCH} full fine-tunings, as on the default trunk. "
        "Models of several layers are trained in bf16 on every machine: where a processor is fast in it, as with "
        "matrix units (AMX) or on newer AMD ones, a step takes about a third of its time in fp32, elsewhere it may "
        "take longer than that.",
    ]


def _bundles(study: Study) -> list[str]:
    plan, records = study.results.records.plan, study.results.records
    lines = [
        "A head of this trunk has about 14 MB a layer in fp16, too much for the repository. This makes those of "
        "`plan.toml`, from the cache or, where their weights are gone, by training them and their teachers again:",
        "",
        "    python -m benchmarks.base --make heads-base",
    ]
    if plan is None:
        return [*lines, "", "There is no plan yet."]
    chosen = [records.runs[head.run] for head in plan.tasks.values() if head.run in records.runs]
    teachers = {run.spec.distillation.teacher for run in chosen if run.spec.distillation}
    taken = sum(run.cpu_seconds for run in chosen) + sum(records.runs[key].cpu_seconds for key in teachers)
    return [
        *lines,
        "",
        f"Trained again, those of {', '.join(plan.tasks)} take {seconds(taken)} s of processor time as measured, and "
        "the trunk's pass over their texts.",
    ]


def _task_values(task: str, study: Study) -> dict[str, Any]:
    result = TaskResult.of(task, study.results.records)
    return {
        "metric": result.metric,
        "full": result.full.mean if result.full else None,
        "full_seeds": result.full.seeds if result.full else 0,
        "teacher": result.teacher,
        "student": result.student.mean if result.student else None,
        "tap": result.tap,
        "layers": result.layers,
        "retention": result.retention,
        "published_bert_base": PUBLISHED[task],
        "comparable": task in WHOLE,
    }
