"""Tables, plots and summary.json of a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.compare import names
from benchmarks.compare.goals import ServingGoal, beside, find_goals
from benchmarks.compare.measure import ratios
from benchmarks.compare.plots import plot_lengths, plot_systems, plot_tasks
from benchmarks.compare.result import Point, Result, load_result
from onetrunk.files import atomic_write_text

# What the rows of a scenario are compared with.
_VERSIONS = ("onnxruntime", "nvidia-pytriton")
_COLUMNS = (
    *("system", "tokens", "at a time", "texts/s", "ours / it", "p50 ms", "p99 ms", "cpu ms", "memory MB"),
    "weights MB",
)
_REFERENCE = {"base": names.GROUPED, "small": names.GROUPED, "shipped": names.GROUPED}


def load_results(folder: Path) -> dict[str, Result]:
    """Scenario -> its result, of those that were measured."""
    files = {name: folder / f"{name}.json" for name in names.SCENARIOS}
    return {name: load_result(file) for name, file in files.items() if file.exists()}


def write_report(folder: Path) -> list[ServingGoal]:
    """Writes README.md, summary.json and plots from the scenarios' files; gives the goals."""
    results = load_results(folder)
    goals = find_goals(results, folder)
    summary = {goal.name: round(goal.value[0], 4) for goal in goals if goal.value is not None}
    atomic_write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    plots = []
    for name, plot in (("base", plot_systems), ("tasks", plot_tasks), ("lengths", plot_lengths)):
        if name in results:
            plot(results[name], folder / f"{name}.png")
            plots.append(name)
    atomic_write_text(folder / "README.md", "\n".join(_readme(results, goals, plots)) + "\n")
    return goals


def goal_rows(goals: Sequence[ServingGoal]) -> list[tuple[str, str, str, str, str]]:
    """Name, what, goal, measured and whether it is reached; ratios with their spread over the repeats."""
    rows = []
    for goal in goals:
        wanted = f"at least {goal.least:g}" if goal.least is not None else f"at most {goal.most:g}"
        found = "not measured"
        if goal.value is not None:
            median, least, greatest = goal.value
            found = f"{median:.2f}" if least == greatest else f"{median:.2f} ({least:.2f}-{greatest:.2f})"
        reached = {True: "yes", False: "**no**", None: ""}[goal.reached]
        rows.append((goal.name, goal.what, wanted, found, reached))
    return rows


def point_rows(result: Result) -> Iterator[tuple[str, ...]]:
    """One row a point."""
    for point in result.points:
        measured = point.measured
        versus = ""
        ours = _reference(result, point)
        if ours is not None:
            median, least, greatest = ratios(ours.measured, measured)
            versus = f"{median:.2f} ({least:.2f}-{greatest:.2f})"
        yield (
            *(point.system, str(point.tokens), str(point.concurrency), f"{measured.median('throughput'):.1f}", versus),
            *(f"{measured.median('p50_ms'):.1f}", f"{measured.median('p99_ms'):.1f}"),
            *(f"{measured.median('cpu_ms'):.1f}", f"{measured.memory_mb:.0f}"),
            "" if point.weights_mb is None else f"{point.weights_mb:.0f}",
        )


def _reference(result: Result, point: Point) -> Point | None:
    """What a row is compared with: ours, measured in the same run."""
    if result.name == "peers":
        return beside(result, point)
    name = _REFERENCE.get(result.name)
    if name in (None, point.system):
        return None
    return result.find(str(name), point.tokens, point.concurrency)


def _readme(results: Mapping[str, Result], goals: Sequence[ServingGoal], plots: Sequence[str]) -> Iterator[str]:
    yield "# Performance\n"
    yield (
        "`make bench`, which is `python -m benchmarks.compare`. All systems of a table run at the same time and are "
        "measured in turn, on the same texts of exactly the given length, over HTTP, in a closed loop. A ratio is of "
        "two measurements of one repeat, and stands as median (least-greatest) of the repeats. *cpu* is the processor "
        "time of all of a system's processes a text, *memory* their proportional set size, *weights* the size of the "
        "model files.\n"
    )
    yield "## Goals\n"
    yield from _table(("goal", "what", "wanted", "measured", "reached"), goal_rows(goals))
    for name, result in results.items():
        settings, machine = result.settings, result.machine
        yield f"\n## {name}: {result.title}\n"
        versions = ", ".join(f"{what} {machine[what]}" for what in _VERSIONS if what in machine)
        yield (
            f"{machine['when']}, {machine['processor']}, {machine['cores']} cores, {versions}; "
            f"{settings['repeats']:g} repeats of {settings['seconds']:g} s. "
            f"`python -m benchmarks.compare --scenarios {name}`\n"
        )
        if name in plots:
            yield f"![{name}]({name}.png)\n"
        reference = _REFERENCE.get(name)
        yield from _table(_COLUMNS, list(point_rows(result)))
        if reference is not None:
            yield f'\n*ours / it*: throughput of "{reference}" over that of the row\'s system.'
            yield from _parts(result.find(reference, result.points[0].tokens, 4))
        if result.figures:
            yield "\n" + ", ".join(f"{name} {value:.3g}" for name, value in result.figures.items()) + "."
        kinds = dict.fromkeys((point.system, point.what) for point in result.points if point.what)
        if kinds and reference is not None:
            yield ""
            yield from (f"- **{system}**: {what}" for system, what in kinds)


def _parts(point: Point) -> Iterator[str]:
    measured = point.measured
    parts = ", ".join(f"{name} {size:.0f}" for name, size in sorted(measured.parts_mb.items()))
    if parts:
        rest = measured.memory_mb - sum(measured.parts_mb.values())
        yield f"\nMemory of its parts in MB: {parts}; Triton itself {rest:.0f}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
