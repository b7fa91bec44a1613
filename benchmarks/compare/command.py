"""What ``bench-repo --compare`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from onetrunk.cli.console import errors_end_command, progress_line
from onetrunk.machine import usable_cores
from onetrunk.protocol.errors import UserError

NAMES = ("base", "small", "shipped", "understanding", "tasks", "subset", "lengths", "hops", "peers")


def compare(
    *,
    scenarios: Sequence[str] | None,
    seconds: float,
    repeats: int,
    work: Path,
    heads: Path,
    peers: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Measures scenarios, writes their results, and the report of all that were ever measured into ``output``.

    Args:
        scenarios: which; None for all (peers only where their Python is given).
        seconds: of a measurement.
        repeats: of each.
        work: folder for trunks, heads and repositories, which are made in a folder in it; see kept_folder.
        heads: the bundles that ship.
        peers: the Python of the peers' virtual environment.
        output: folder of the results.
        as_json: whether the goals are printed as JSON.
    """
    with errors_end_command():
        wanted = _wanted(scenarios, peers)
        with progress_line() as progress:
            progress("loading torch", 0, 1)
            # Imported here: a mistyped option needs no torch.
            from benchmarks.compare.kept import kept_folder
            from benchmarks.compare.report import goal_rows, write_report
            from benchmarks.compare.scenarios import SCENARIOS, Bench

            bench = Bench(kept_folder(work), heads, seconds, repeats, usable_cores(), peers, progress)
            for name in wanted:
                # Saved one by one: what was measured stays measured when a later one fails.
                SCENARIOS[name](bench).save(output)
            goals = write_report(output)
    if as_json:
        summary = {goal.name: {"value": goal.value, "reached": goal.reached} for goal in goals}
        click.echo(json.dumps(summary, indent=2))
    else:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("goal", "what", "wanted", "measured", "reached"):
            table.add_column(column)
        for row in goal_rows(goals):
            table.add_row(*(cell.replace("**", "") for cell in row))
        Console().print(table)
    click.echo(f"saved: {output}/README.md", err=True)


def _wanted(scenarios: Sequence[str] | None, peers: Path | None) -> list[str]:
    wanted = list(scenarios or NAMES)
    if unknown := [name for name in wanted if name not in NAMES]:
        raise UserError(f"--scenarios {unknown[0]}: no such scenario; there are: {', '.join(NAMES)}")
    if peers is None and "peers" in wanted:
        if scenarios:
            raise UserError("scenario peers: give their Python by --peers (see benchmarks/peers/README.md)")
        wanted.remove("peers")
    if peers is not None and "peers" not in wanted:
        raise UserError("--peers has no effect without the scenario peers: add it to --scenarios, or leave --peers out")
    return wanted
