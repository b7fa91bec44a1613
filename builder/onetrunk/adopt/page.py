"""The report of adoptions: one HTML page with its plots inside, which needs no network and can be sent around."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from onetrunk.adopt.records import AdoptedModel
from onetrunk.adopt.serving_cost import ServingCost
from onetrunk.distill.plots import CHOSEN, HEADS, TRUNK, plot_style
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import counted

COUNTS = (8, 21, 64)
"""The numbers of models for which costs are computed."""

_SHOWN_LABELS = 50

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; text-align: right; }
th { border-bottom: 1px solid #888; } td { border-bottom: 1px solid #ddd; }
td:first-child, th:first-child, td.text { text-align: left; } td.text { max-width: 38rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dd { margin: 0; }
.below { color: #a33; } .note { color: #666; } img { max-width: 100%; } summary { cursor: pointer; }
"""


def summary_rows(adopted: Sequence[AdoptedModel]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of all models: the names of its columns, and a row for each."""
    columns = (
        "model",
        "kind",
        "head",
        "learned from",
        "compared on",
        "agreement",
        "95% interval",
        "constant",
        "mean KL, nats",
        "metric",
        "model's",
        "head's",
        "kept",
        "floor",
    )
    return columns, [_row(one) for one in adopted]


def _row(one: AdoptedModel) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.kind}, {one.form}",
        f"tap {one.tap}, {counted(one.layers, 'layer', 'layers')}",
        "answers and states" if one.learned_states else "answers",
        f"{one.dev_texts:,}",
        _share(one, one.agreement),
        "" if (found := one.agreement_interval) is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f}",
        "" if one.constant_agreement is None else _share(one, one.constant_agreement),
        "" if one.divergence is None else f"{one.divergence:.3f}",
        one.metric if one.labelled_rows else "no labels",
        _percent(one.teacher_score),
        _percent(one.head_score),
        "" if one.kept is None else f"{100 * one.kept:.1f}%",
        "reached" if one.reached else "missed",
    )


def _share(one: AdoptedModel, value: float) -> str:
    return f"{value:.3f}" if one.agreement_measure == "correlation" else f"{100 * value:.1f}%"


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def cost_rows(cost: ServingCost) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of costs: the names of its columns, and a row for each number of models."""
    columns = (
        "models",
        "whole models, ms",
        "one trunk, ms",
        "share",
        "whole models, MB",
        "one trunk, MB",
        "share",
        "figures",
    )
    rows: list[tuple[str, ...]] = []
    for count in (None, *COUNTS):
        (whole_ms, whole_mb), (trunk_ms, trunk_mb) = cost.whole_models(count), cost.one_trunk(count)
        rows.append(
            (
                str(len(cost.whole) if count is None else count),
                f"{whole_ms:.1f}",
                f"{trunk_ms:.1f}",
                f"{100 * trunk_ms / whole_ms:.0f}%",
                f"{whole_mb:,.0f}",
                f"{trunk_mb:,.0f}",
                f"{100 * trunk_mb / whole_mb:.0f}%",
                "measured" if count is None else "computed",
            )
        )
    return columns, rows


def page_of(adopted: Sequence[AdoptedModel], cost: ServingCost | None) -> str:
    """Return the page as HTML.

    Args:
        adopted: The models.
        cost: What serving costs, if it was measured.
    """
    parts = [
        "<h1>Adopted models</h1>",
        "<p>Each model labelled texts, and a head on one shared trunk learned from what it said. All figures are of "
        "texts that nothing was learned from.</p>",
        _verdict(adopted),
        '<dl class="note"><dt>agreement</dt><dd>The share of texts that model and head answer alike; for a number, the '
        "correlation. The interval holds the share on all such texts with a probability of 95%: it is wide where few "
        "texts are compared.</dd><dt>constant</dt><dd>On so many texts a head would agree that always gave the model's "
        "commonest answer. An agreement that is hardly higher is worth nothing.</dd><dt>mean KL</dt><dd>How far the "
        "head's probabilities are from the model's.</dd><dt>kept</dt><dd>The head's score on labelled texts as a share "
        "of the model's.</dd></dl>",
        _table(*summary_rows(adopted)),
        _image(_draw_agreement(adopted), "agreement of each head with its model"),
    ]
    if cost is not None and cost.whole:
        parts += [
            "<h2>Costs</h2>",
            f"<p>One text of {cost.tokens} tokens, one thread, ONNX Runtime, {escape(cost.machine)}; medians of "
            f"{cost.rounds} rounds in which all parts took turns. The first row is measured; the others are computed "
            "from its means: so many models, or the same trunk with so many heads.</p>",
            _table(*cost_rows(cost)),
            _image(_draw_costs(cost), "milliseconds by the number of models"),
        ]
        parts += [
            f'<p class="note">{escape(name)} is in neither sum: {escape(why)}</p>'
            for name, why in cost.left_out.items()
        ]
    parts += [_model(one) for one in adopted]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Adopted models</title>\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + f'\n<p class="note">OneTrunk {__version__}</p>\n</html>\n'
    )


def _verdict(adopted: Sequence[AdoptedModel]) -> str:
    """Say which heads may replace their models, and what to do about the others."""
    missed = [one.name for one in adopted if not one.reached]
    if not missed:
        return (
            f"<p><strong>{'The head reaches' if len(adopted) == 1 else f'All {len(adopted)} heads reach'} the "
            "floor.</strong> Read the texts that are answered differently before you replace a model.</p>"
        )
    return (
        f'<p><strong class="below">{escape(", ".join(missed))}: the floor is missed.</strong> '
        f"{len(adopted) - len(missed)} of {len(adopted)} heads reach it. More texts help most; --thorough tries heads "
        "of nearly all layers.</p>"
    )


def _model(one: AdoptedModel) -> str:
    tried = _table(
        ("tap", "layers", "agreement", "mean KL, nats", one.metric if one.labelled_rows else "score", "seconds"),
        [
            (
                str(attempt.tap),
                str(attempt.layers),
                f"{attempt.agreement:.3f}",
                "" if attempt.divergence is None else f"{attempt.divergence:.3f}",
                _percent(attempt.score),
                f"{attempt.seconds:.0f}",
            )
            for attempt in one.attempts
        ],
    )
    texts = [" / ".join(other.text) if isinstance(other.text, tuple) else other.text for other in one.differences]
    differ = _table(
        ("text", "model", "head", "apart by"),
        [
            (text, other.teacher, other.head, f"{other.distance:.2f}")
            for text, other in zip(texts, one.differences, strict=True)
        ],
        long=True,
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in one.notes)
    start = "its own layers" if one.start == "teacher" else "the trunk's layers"
    labelled = f", {one.labelled_rows:,} labelled" if one.labelled_rows else ""
    copies = f" and {one.copies} changed cop{'y' if one.copies == 1 else 'ies'} of each" if one.copies else ""
    size = f"{one.teacher_bytes / 1e6:,.0f} MB, " if one.teacher_bytes else ""
    about = (
        f"{one.source} ({one.family}, {size}SHA-256 {one.sha256[:12]}...). "
        f"{one.train_texts:,} texts to learn from{copies}, {one.dev_texts:,} to compare on{labelled}. Heads started "
        f"from {start}; the head takes {one.head_bytes / 1e6:,.1f} MB."
    )
    floor = f"Floor: {one.floor}; {'reached' if one.reached else 'missed'}." if one.floor else ""
    labels = (
        _table(
            ("label", "texts by the model", "by the head", "by both", "share that the head finds"),
            [
                (
                    other.label,
                    f"{other.teacher:,}",
                    f"{other.head:,}",
                    f"{other.both:,}",
                    f"{100 * other.both / other.teacher:.0f}%" if other.teacher else "",
                )
                for other in sorted(one.by_label, key=lambda other: -other.teacher)[:_SHOWN_LABELS]
            ],
            long=True,
        )
        if one.by_label
        else ""
    )
    return (
        f"<h2>{escape(one.name)}</h2>\n<p>{escape(about)}</p>\n<p>{escape(floor)}</p>\n{tried}\n{labels}\n"
        f"<details><summary>{len(one.differences)} texts that are answered differently, those that are furthest apart "
        f"first</summary>{differ if one.differences else ''}</details>\n{notes}"
    )


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]], *, long: bool = False) -> str:
    first = ' class="text"' if long else ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        mark = ' class="below"' if "missed" in row[-1:] else ""
        cells = "".join(f"<td{first if place == 0 else ''}>{escape(cell)}</td>" for place, cell in enumerate(row))
        body.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(body) + "</table>"


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _draw_agreement(adopted: Sequence[AdoptedModel]) -> Figure:
    with plot_style():
        figure = Figure(figsize=(7.5, 0.9 + 0.32 * len(adopted)), layout="constrained")
        axes = figure.subplots()
        names = [one.name.replace("$", r"\$") for one in adopted]
        axes.barh(names, [100 * one.agreement for one in adopted], color=HEADS, height=0.6)
        lowest = min(one.agreement for one in adopted)
        axes.set_xlim(100 * max(0.0, min(0.9, lowest - 0.05)), 100)
        axes.invert_yaxis()
        axes.set_xlabel("agreement with the model, %")
    return figure


def _draw_costs(cost: ServingCost) -> Figure:
    with plot_style():
        figure = Figure(figsize=(7.5, 3), layout="constrained")
        axes = figure.subplots()
        counts = sorted({1, len(cost.whole), *COUNTS})
        axes.plot(
            counts, [cost.whole_models(count)[0] for count in counts], marker="s", color=TRUNK, label="whole models"
        )
        axes.plot(counts, [cost.one_trunk(count)[0] for count in counts], marker="o", color=CHOSEN, label="one trunk")
        axes.set_xlabel("models (computed, but for the number that was measured)")
        axes.set_ylabel("ms for one text")
        axes.legend()
    return figure
