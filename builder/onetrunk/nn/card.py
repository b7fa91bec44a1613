"""The card of a bundle: what a person should know before serving a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onetrunk.tasks.kinds import get_kind

if TYPE_CHECKING:
    from onetrunk.tasks.head_spec import HeadSpec

# [CLS] is what a reader expects, so it is not told.
_QUERIES = {"cls": "", "mean": "the mean of the states", "learned": "a learned, weighted mean of the states"}


def card_text(spec: HeadSpec) -> str:
    """The card as Markdown."""
    reads = "one text" if spec.form == "single" else "a pair of texts"
    query = _QUERIES[spec.query]
    lines = [
        f"# Head `{spec.task}`",
        "",
        f"A {spec.kind} head for {reads}: {get_kind(spec.kind).output.describe(spec)}.",
        f"{_count(spec.layers, 'layer')} on tap {spec.tap} of trunk `{spec.trunk}`, up to {spec.max_length} tokens.",
        *([f"The query of its last layer is {query} below it, not [CLS]."] if query else []),
        "",
        "## Scores on the dev data",
        "",
        "| metric | score |",
        "|---|---|",
        *(f"| {name} | {100 * value:.1f} |" for name, value in spec.scores.items()),
        "",
        f"The epoch was chosen on the same dev data, by {spec.metric}, so these scores are a little optimistic.",
        "",
        *(["## Fitted to the dev data", "", *_fitted(spec), ""] if spec.fitted else []),
        *(["## How it came about", "", *_story(spec.story), ""] if spec.story else []),
        "## Data",
        "",
        *_items(spec.data),
        f"- licence: {spec.licence or 'not stated by the task file'}",
        "",
        *(["## Options", "", *_items(spec.options), ""] if spec.options else []),
        "## Recipe",
        "",
        *_items(spec.recipe),
        "",
        f"Written by OneTrunk {spec.onetrunk_version} on {spec.created}. Weights are stored as fp16.",
    ]
    return "\n".join(lines) + "\n"


def _story(story: dict[str, Any]) -> list[str]:
    """What was trained before this head and beside it. Scores are by the metric that chose the epoch."""
    lines = [f"Scores on the dev data by {story['metric']}.", "", "| what | score |", "|---|---|"]
    if full := story.get("full_fine_tuning"):
        lines.append(f"| full fine-tuning of the whole encoder | {_over_seeds(full)} |")
    if teacher := story.get("teacher"):
        where = f"{_count(teacher['layers'], 'layer')} on tap {teacher['tap']}"
        lines.append(f"| its teacher: {where} | {100 * teacher['score']:.1f} |")
    lines.append(f"| this head | {_over_seeds(story['student'])} |")
    if how := story.get("distillation"):
        lines += [
            "",
            "Distilled with: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in how.items()),
        ]
    if tried := story.get("tried"):
        lines += ["", "Tried in the search:", "", *(f"- {one}" for one in tried)]
    return lines


def _fitted(spec: HeadSpec) -> list[str]:
    """What the kind chose after training; several numbers with what each is of."""
    told: dict[str, Any] = {}
    for name, value in spec.fitted.items():
        if isinstance(value, list):
            value = dict(zip(spec.labels or (), value, strict=False))
        told[name] = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
    return [*_items(told), "", "What is measured on the same data after that, is a little optimistic."]


def _over_seeds(told: dict[str, Any]) -> str:
    mean = f"{100 * told['score']:.1f}"
    if "deviation" not in told:
        return f"{mean} (one seed)"
    return f"{mean} (mean of {told['seeds']} seeds, standard deviation {100 * told['deviation']:.1f})"


def _items(mapping: dict[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in mapping.items()] or ["- not recorded"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
