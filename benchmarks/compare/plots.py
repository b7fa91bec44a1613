"""Plots of a comparison."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.compare.result import Result
from onetrunk.distill.plots import HEADS, OVERHEAD, plot_style, write_figure


def plot_systems(result: Result, path: Path) -> None:
    """Bars: texts a second of each system at four texts at a time, with the repeats' spread."""
    points = [point for point in result.points if point.concurrency == 4]
    points.sort(key=lambda point: point.measured.median("throughput"))
    with plot_style():
        figure = Figure(figsize=(8, 0.4 * len(points) + 1), layout="tight")
        axes = figure.subplots()
        for place, point in enumerate(points):
            found = [sample.throughput for sample in point.measured.samples]
            median = point.measured.median("throughput")
            color = HEADS if point.system.startswith("ours") else OVERHEAD
            axes.barh(place, median, color=color, xerr=[[median - min(found)], [max(found) - median]], ecolor="black")
            axes.text(median, place, f"  {median:.1f}", va="center", fontsize=8)
        axes.set_yticks(range(len(points)), [point.system for point in points], fontsize=8)
        axes.set_xlabel("texts/s, all tasks answered, 4 at a time")
        write_figure(figure, path)


def plot_tasks(result: Result, path: Path) -> None:
    """Lines: processor time and memory over the number of tasks."""
    series: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for point in result.points:
        name = point.system.rpartition(":")[0]
        series[name].append((point.tasks, point.measured.median("cpu_ms"), point.measured.memory_mb))
    with plot_style():
        figure = Figure(figsize=(10, 4), layout="tight")
        both = figure.subplots(1, 2)
        for name, rows in series.items():
            rows.sort()
            for axes, column in zip(both, (1, 2), strict=True):
                axes.plot([row[0] for row in rows], [row[column] for row in rows], marker="o", label=name)
        for axes, label in zip(both, ("processor time a text, ms", "memory of the server, MB"), strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel("tasks")
            axes.set_ylabel(label)
        both[0].legend(fontsize=7)
        write_figure(figure, path)


def plot_lengths(result: Result, path: Path) -> None:
    """Lines: texts a second over the length of the texts."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for point in result.points:
        series[point.system].append((point.tokens, point.measured.median("throughput")))
    with plot_style():
        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        for name, rows in series.items():
            axes.plot(*zip(*sorted(rows), strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("texts/s, 4 at a time")
        axes.legend(fontsize=7)
        write_figure(figure, path)
