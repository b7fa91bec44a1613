"""What a plan's time goes into: the trunk, the heads, and calling them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.study.plan_tables import CHOSEN
from benchmarks.study.plots.style import HEADS, OVERHEAD, TRUNK, style, write_plot
from benchmarks.study.summary import Summary

COST_PLOT = "cost_split.png"


def draw_costs(summary: Summary, path: Path) -> bool:
    """Draws it; False where there is nothing to draw yet."""
    found = summary.alternatives
    if found is None:
        return False
    plans = {name: plan for name, plan in {CHOSEN: found.chosen, **found.paper}.items() if plan and "Mixed" not in name}
    with style():
        figure = Figure(figsize=(6.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False, axis="x")
        bottom = np.zeros(len(plans))
        for name, colour, values in (
            ("trunk", TRUNK, [plan.cost.trunk_ms for plan in plans.values()]),
            ("heads", HEADS, [plan.cost.heads_ms for plan in plans.values()]),
            ("overhead: calling each model", OVERHEAD, [plan.cost.overhead_ms for plan in plans.values()]),
        ):
            axes.bar(list(plans), values, bottom=bottom, color=colour, width=0.6, label=name)
            bottom += np.array(values)
        for place, plan in enumerate(plans.values()):
            text = f"{100 * plan.share:.1f}%"
            axes.annotate(text, (place, plan.cost.total_ms), (0, 3), textcoords="offset points", ha="center")
        tasks = len(next(iter(plans.values())).options)
        singles = next(iter(plans.values())).cost.singles_ms
        axes.set_title(f"% of {tasks} single-task models, which take {singles:.1f} ms", loc="left", fontsize=9)
        axes.set_ylabel("milliseconds for one text, all tasks")
        # Room above the bars for the legend.
        axes.set_ylim(0, 1.35 * float(bottom.max()))
        axes.legend(loc="upper center", ncols=3)
        write_plot(figure, path)
    return True
