"""The tables of plans: the chosen one beside the paper's configurations, and the frontier."""

from __future__ import annotations

from benchmarks.study.alternatives import Alternatives
from benchmarks.study.markdown import percent, table
from onetrunk.distill.plan import Plan

CHOSEN = "chosen plan"
FULL = "full fine-tuning"
_COLUMNS = ("configuration", "kept on average", "keeps least", "taps", "layers in all", "cost share", "milliseconds")
_SHARES = (0.12, 0.14, 0.16, 0.18, 0.20, 0.25, 0.30, 0.40, 0.50)


def alternatives_table(alternatives: Alternatives) -> list[str]:
    """The chosen plan, KD-1, KD-2, KD-3 and the mixed selections of the same students."""
    plans = {CHOSEN: alternatives.chosen, **alternatives.paper}
    return [
        *table(_COLUMNS, [(name, *_cells(plan)) for name, plan in plans.items() if plan]),
        "",
        "KD-l: every task has l layers, or as many of them as the search tried, which adds layers only while they may "
        "still help. Mixed-c: layers are added for as long as each gains at least c points (the paper's selection). "
        "Both stand on the tap of each task's best student. Costs are the cost table's, for one text, mean over text "
        "lengths and batch sizes; scores are of the search's own seed.",
    ]


def frontier_table(alternatives: Alternatives) -> list[str]:
    """The best plan within each share of the cost, as long as a greater share buys anything."""
    rows: list[tuple[str, ...]] = []
    shown: Plan | None = None
    for share in (*_SHARES, float("inf")):
        plan = alternatives.best_within(share)
        if plan is not None and plan is not shown:
            rows.append(("any" if share == float("inf") else f"at most {percent(share, 0)}", *_cells(plan)))
            shown = plan
    return table(("cost allowed", *_COLUMNS[1:]), rows)


def _cells(plan: Plan) -> tuple[str, ...]:
    return (
        percent(plan.average),
        f"{percent(plan.worst.retention)} ({plan.worst.task})",
        ", ".join(str(tap) for tap in plan.taps),
        str(sum(option.layers for option in plan.options)),
        percent(plan.share),
        f"{plan.cost.total_ms:.2f}",
    )
