"""The command that measures this repository's ways of serving beside whole models: ``python -m benchmarks.compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.compare import names
from onetrunk.cli.console import progress_line
from onetrunk.cli.data_options import split_names
from onetrunk.machine import usable_cores
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError

_EPILOG = """\b
Examples:
  python -m benchmarks.compare --output results             all scenarios; about half an hour
  python -m benchmarks.compare --scenarios base,small --repeats 5
  python -m benchmarks.compare --scenarios peers --peers .peers/bin/python

\b
No server has to run. Results are written scenario by scenario: one can be measured again
without the others, and README.md is of all that were ever measured into the folder."""


@click.command(epilog=_EPILOG)
@click.option(
    "--scenarios",
    "scenario_list",
    metavar="A,B",
    help=f"{', '.join(names.SCENARIOS)}. [default: all; peers only with --peers]",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.3), default=3.0, show_default=True, help="How long a measurement takes."
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Repeats of a measurement.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".bench"),
    show_default=True,
    help="Trunks, checkpoints and repositories, gigabytes of them, are made in made_KEY/ in this folder and reused "
    "until the code or a library that makes them changes.",
)
@click.option(
    "--heads",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("heads"),
    show_default=True,
    help="The folder of bundles.",
)
@click.option(
    "--peers",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The Python of the peers' virtual environment (benchmarks/peers/README.md).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the results. [default: results/ in --work]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the goals as JSON.")
def compare(
    scenario_list: str | None,
    seconds: float,
    repeats: int,
    work: Path,
    heads: Path,
    peers: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Start servers and measure this repository's ways of serving beside whole models, on this machine."""
    output = output or work / "results"
    with errors_end_command():
        wanted = _choose_scenarios(scenario_list, peers)
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
        _print_goals(goal_rows(goals))
    click.echo(f"saved: {output}/README.md", err=True)


def _choose_scenarios(scenario_list: str | None, peers: Path | None) -> list[str]:
    given = split_names(scenario_list or "")
    chosen = given or list(names.SCENARIOS)
    if unknown := [name for name in chosen if name not in names.SCENARIOS]:
        raise UserError(f"--scenarios {unknown[0]}: no such scenario; there are: {', '.join(names.SCENARIOS)}")
    if peers is None and "peers" in chosen:
        if given:
            raise UserError("scenario peers: give their Python by --peers (see benchmarks/peers/README.md)")
        chosen.remove("peers")
    if peers is not None and "peers" not in chosen:
        raise UserError("--peers has no effect without the scenario peers: add it to --scenarios, or leave --peers out")
    return chosen


def _print_goals(rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("goal", "what", "wanted", "measured", "reached"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(cell.replace("**", "") for cell in row))
    Console().print(table)


if __name__ == "__main__":
    compare(prog_name="python -m benchmarks.compare")
