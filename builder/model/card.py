"""The card of a bundle: what a person should know before serving a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.model.bundle import HeadSpec


def card_text(spec: HeadSpec) -> str:
    """The card as Markdown."""
    if spec.labels:
        answers = ", ".join(f"`{label}`" for label in spec.labels)
    else:
        answers = "a number from {:g} to {:g}".format(*(spec.range or (0, 1)))
    reads = "one text" if spec.form == "single" else "a pair of texts"
    lines = [
        f"# Head `{spec.task}`",
        "",
        f"A {spec.kind} head for {reads}: {answers}.",
        f"{_count(spec.layers, 'layer')} on tap {spec.tap} of trunk `{spec.trunk}`, up to {spec.max_length} tokens.",
        "",
        "## Scores on the dev data",
        "",
        "| metric | score |",
        "|---|---|",
        *(f"| {name} | {100 * value:.1f} |" for name, value in spec.scores.items()),
        "",
        f"The epoch was chosen on the same dev data, by {spec.metric}, so these scores are a little optimistic.",
        "",
        "## Data",
        "",
        *_items(spec.data),
        f"- licence: {spec.licence or 'not stated by the task file'}",
        "",
        "## Recipe",
        "",
        *_items(spec.recipe),
        "",
        f"Written by OneTrunk {spec.onetrunk_version} on {spec.created}. Weights are stored as fp16.",
    ]
    return "\n".join(lines) + "\n"


def _items(mapping: dict[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in mapping.items()] or ["- not recorded"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
