"""The page of limbs, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.limbs.shapes import DEFAULT, SHAPES, TASKS, Records, Shape, Unlabelled
from benchmarks.study.measured_cost import MeasuredCost
from onetrunk.distill.markdown import NOT_YET, gain, percent, points, table
from onetrunk.distill.results import kept_on_average


def summary(
    records: Records, costs: Mapping[str, MeasuredCost], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any] | Any]:
    """Return what summary.json holds: the figures of each limb.

    Args:
        records: What was measured.
        costs: Limb -> measured cost.
        known: Folder of a study -> its summary.
    """
    return {
        "limbs": {
            shape.name: limb_summary(shape, records, costs.get(shape.name), known[shape.study.folder])
            for shape in SHAPES
        },
        "machine": records.found.get("machine"),
    }


def limb_summary(shape: Shape, records: Records, cost: MeasuredCost | None, study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one limb, and of all eight tasks where those of its family stand on it.

    Args:
        shape: The limb.
        records: What was measured.
        cost: What its plan costs, if that was measured.
        study: The summary of the study that it is compared with.
    """
    tasks = {}
    pairs: dict[str, tuple[float | None, float | None]] = {}
    for task in shape.on_it:
        on_limb = records.scores(shape, task)
        known = study["tasks"][task]
        tasks[task] = {
            "metric": known["metric"],
            "joint": records.found.get(f"{shape.name}: joint training", {}).get(task),
            "on_limb": _mean(on_limb),
            "on_limb_sd": _deviation(on_limb),
            "on_trunk_same_price": _mean(records.scores(shape, task, where="trunk")),
            "on_limb_that_never_saw_it": _mean(records.scores(shape, task, where="limb without it")),
            "plan": known["student"],
            "plan_layers": known["layers"],
            "full_fine_tuning": known["full"],
            "kept": _mean(on_limb) / known["full"] if on_limb and known["full"] else None,
            "seeds": len(on_limb),
        }
        pairs[task] = (tasks[task]["on_limb"], known["full"])
    for task in shape.others:
        known = study["tasks"][task]
        own = _mean(records.scores(shape, task, where="trunk")) if task in shape.taught else known["student"]
        pairs[task] = (own, known["full"])
    both = {task: (score, full) for task, (score, full) in pairs.items() if score is not None and full is not None}
    whole = len(both) == len(pairs)
    seconds = records.found.get(f"{shape.name}: seconds of it")
    of_heads = [_mean(records.scores(shape, task, what="cpu_seconds")) for task in shape.on_it] if seconds else [None]
    return {
        "tap": shape.recipe.tap,
        "layers": shape.recipe.layers,
        "tasks": tasks,
        "taught_on_trunk": {
            task: _mean(records.scores(shape, task, where="trunk")) for task in shape.others if task in shape.taught
        },
        "retention_average": kept_on_average(both.values()) if whole else None,
        "retention_without_rte": kept_on_average(both[task] for task in both if task != "rte") if whole else None,
        "retention_min": min(score / full for score, full in both.values()) if whole else None,
        "train_seconds": None if seconds is None or None in of_heads else seconds + sum(filter(None, of_heads)),
        "cost_share": cost.share if cost else None,
        "against_one_model": cost.against_one if cost else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def page(found: Mapping[str, Any], records: Records) -> str:
    """Return README.md: of the limbs of which any head was measured."""
    measured = [
        shape
        for shape in SHAPES
        if any(one["on_limb"] is not None for one in found["limbs"][shape.name]["tasks"].values())
    ]
    rows = [
        (
            f"`{shape.name}`: {shape.recipe.layers} on tap {shape.recipe.tap}"
            + ("" if shape.study is DEFAULT else f" of the {shape.study.called}"),
            ", ".join(shape.family) if shape.others else "all eight",
            str(len(shape.on_it)),
            percent(one["retention_average"]),
            percent(one["retention_without_rte"]),
            percent(one["retention_min"]),
            percent(one["cost_share"]),
            _times(one["against_one_model"]),
        )
        for shape in measured
        for one in [found["limbs"][shape.name]]
    ]
    columns = (
        *("limb, layers", "trained on", "tasks on it", "kept on average", "without RTE", "least kept"),
        *("cost of eight models", "throughput of one model"),
    )
    parts = [
        "# Limbs",
        "Layers on a tap of the default trunk, unless it says otherwise, trained on several tasks together and then "
        "frozen. Heads of one folded layer stand on them, each trained alone, on labels unless it says otherwise. "
        "Tasks that a limb of the default trunk is not for stay on it, as in the plan of [quality](../quality/). Kept "
        "is a head's dev score over that of full fine-tuning of the same trunk, and on average the mean score over the "
        "mean score; that of RTE is little better than "
        "chance on the default trunk, so the average without it is the one to go by there. Costs are of all eight "
        "tasks' models, one after another, against as many single-task models, in one run.",
        "\n".join(table(columns, rows)),
    ]
    for shape in measured:
        parts += _section(shape, found["limbs"][shape.name], records.found.get(f"{shape.name}: note"))
    if shared := records.found.get("shared texts", {}):
        parts += [
            "## Texts that tasks share",
            "Dev texts (each of the two by itself), and in brackets whole dev pairs, that are in the train data of the "
            "other tasks. A limb leaves out the pairs of its family; single texts it has seen beside others:",
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
    columns += [f"one layer on tap {shape.top} of the trunk"] if shape.same_price else []
    columns += [
        "trained jointly",
        "one layer on the limb",
        "on the trunk (layers)",
        "full fine-tuning",
        "kept on the limb",
    ]
    groups = [group for group in shape.left_out if any(_never_seen(found, task) is not None for task in group)]
    never_seen = {task for group in groups for task in group}
    columns += ["on a limb that never saw it"] if groups else []
    for task, one in found["tasks"].items():
        spread = "" if one["on_limb_sd"] is None else f" ± {100 * one['on_limb_sd']:.1f}"
        trunk = one["on_trunk_same_price"]
        more = f" ({gain(one['on_limb'] - trunk)})" if trunk is not None and one["on_limb"] is not None else ""
        rows.append(
            (
                task,
                one["metric"] or NOT_YET,
                *([_score(trunk)] if shape.same_price else []),
                _score(one["joint"]) if task in shape.family else "–",
                f"{_score(one['on_limb'])}{spread}{more}",
                NOT_YET if one["plan"] is None else f"{_score(one['plan'])} ({one['plan_layers']})",
                _score(one["full_fine_tuning"]),
                percent(one["kept"]),
                *([_score(_never_seen(found, task)) if task in never_seen else "–"] if never_seen else []),
            )
        )
    layers = "1 layer" if recipe.layers == 1 else f"{recipe.layers} layers"
    others = ", and another without ".join(" and ".join(group) for group in groups)
    without = f" A limb that never saw a task was trained without {others}, for 2 epochs." if groups else ""
    return [
        f"## `{shape.name}`",
        f"{layers} on tap {recipe.tap} of the {shape.study.called}, trained on {', '.join(shape.family)} for "
        f"{recipe.epochs} epochs"
        f"{' in bf16' if recipe.mixed_precision else ''}{_about(shape)}.{_unlabelled(shape)} Dev scores in "
        "hundredths, means over seeds, with their deviation"
        f"{', and the gain over a head that costs the same' if shape.same_price else ''}. Heads on the trunk are those "
        f"of the plan of [{shape.study.folder}](../{shape.study.folder}/), distilled, most with whole layers of their "
        "own. The epochs of limb and heads were chosen on the same dev data."
        f"{without}",
        *([note] if note is not None else []),
        "\n".join(table(columns, rows)),
        *_taught_on_trunk(shape, found),
    ]


def _never_seen(found: Mapping[str, Any], task: str) -> float | None:
    """Return the score of a task's heads on a limb that never saw it."""
    score: float | None = found["tasks"][task]["on_limb_that_never_saw_it"]
    return score


def _taught_on_trunk(shape: Shape, found: Mapping[str, Any]) -> list[str]:
    """Return sentences about the tasks that stay on the trunk, and learn from their teachers there."""
    return [
        f"{task} stays on the trunk, with {layers} layer{'' if layers == 1 else 's'} of its own on tap {tap}, taught "
        f"by its head of the plan: {_score(found['taught_on_trunk'][task])}."
        for task, (tap, layers) in shape.others.items()
        if task in shape.taught
    ]


def _unlabelled(shape: Shape) -> str:
    """Return a sentence about the texts without labels that teachers were asked about; nothing without any."""
    asked = [f"{' and '.join(_asked_about(more))} for {task}" for task, more in shape.unlabelled.items()]
    return f" Teachers were also asked about {', and '.join(asked)}." if asked else ""


def _asked_about(more: Unlabelled) -> list[str]:
    return [
        *([f"the texts of {more.texts} without their labels"] if more.texts else []),
        *([f"{more.variants} changed copies of each train text"] if more.variants else []),
    ]


def _about(shape: Shape) -> str:
    guests = f"; heads of {', '.join(shape.guests)} stand on it, too" if shape.guests else ""
    tasks = ", ".join(task for task in shape.taught if task in shape.on_it)
    taught = f"; these heads of {tasks} taught it and the heads on it" if shape.taught else ""
    return guests + taught


def _score(value: float | None) -> str:
    return points(value) if value is not None else NOT_YET


def _times(value: float | None) -> str:
    return f"{value:.2f} times" if value is not None else NOT_YET
