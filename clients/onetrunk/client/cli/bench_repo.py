"""The command ``bench-repo``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onetrunk.client.bench.report import load_table, part_table, report_record, save_report
from onetrunk.client.bench.run import BenchPlan, Report, run_bench
from onetrunk.client.cli.options import START_A_SERVER, check_tls, first_key, key_errors, names, numbers
from onetrunk.protocol.api_key import api_key_file_option
from onetrunk.protocol.command import errors_end_command, print_on_stdout
from onetrunk.protocol.errors import BadInput
from onetrunk.protocol.names import ENSEMBLES
from onetrunk.protocol.tls import Tls, tls_options

_EPILOG = """\b
Examples:
  bench-repo                                          every bucket, 1 and 4 requests at a time
  bench-repo --texts reviews.jsonl --output results   your own texts; JSON, CSV and Markdown in results/
  bench-repo --models multitask --buckets 128 --concurrency 1:8

perf_analyzer asks for all outputs of an ensemble: to measure fewer tasks, serve a repository with fewer."""


def _refuse_compare(context: click.Context, option: click.Parameter, value: object) -> None:
    """Refuse an option of the comparison, and name its command."""
    if value:
        with errors_end_command():
            message = "run `python -m benchmarks.compare` in a checkout of the project"
            raise BadInput.of_call(f"{option.opts[0]} is not an option of bench-repo: {message}")


def _refuse_comparison(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a comparison with whole models, each only to be refused by its own name.

    A comparison needs a checkout of the project: ``python -m benchmarks.compare``.
    """
    for name in ("--scenarios", "--repeats", "--work", "--heads", "--peers"):
        command = click.option(name, hidden=True, expose_value=False, callback=_refuse_compare)(command)
    return click.option("--compare", is_flag=True, hidden=True, expose_value=False, callback=_refuse_compare)(command)


@click.command(epilog=_EPILOG)
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="Host and port of the server's gRPC endpoint.")
@tls_options
@api_key_file_option("Send the first key of this file, to a server that asks for one; mode 0600. perf_analyzer cannot.")
@click.option(
    "--models",
    metavar="A,B",
    callback=names,
    default=",".join(ENSEMBLES),
    show_default=True,
    help="The ensembles to load.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Rows to send: .jsonl or .txt, also .gz. [default: a few dozen of different lengths]",
)
@click.option(
    "--buckets",
    metavar="16,32",
    callback=numbers,
    help="Only these padded lengths in tokens. [default: all that have rows]",
)
@click.option(
    "--concurrency", metavar="1,4|1:8", callback=numbers, default="1,4", show_default=True, help="Requests at a time."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.3),
    default=3.0,
    show_default=True,
    help="How long to measure each combination.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to save the figures in. [default: none]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--perf-analyzer",
    "program",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The program to use. [default: the one beside this Python, or on PATH]",
)
@_refuse_comparison
def bench_repo(
    url: str,
    tls: Tls | None,
    api_key_file: Path | None,
    models: tuple[str, ...],
    texts: Path | None,
    buckets: tuple[int, ...] | None,
    concurrency: tuple[int, ...],
    seconds: float,
    output: Path | None,
    as_json: bool,
    program: Path | None,
) -> None:
    """Measure a running server with perf_analyzer, one bucket of real texts at a time.

    perf_analyzer sends no headers over gRPC: with --api-key-file, bench-repo sends the requests itself.

    Prints throughput, median and 99th percentile of the latency, and the queue and compute time of every part as
    Triton counts them. Make sure that nothing else uses the server during the run.
    """
    unknown = [model for model in models if model not in ENSEMBLES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(ENSEMBLES)}", param_hint="--models")
    with errors_end_command(if_not_ready=START_A_SERVER), key_errors(api_key_file):
        plan = BenchPlan(url, models, concurrency, seconds, texts, buckets, program, tls, first_key(api_key_file))
        check_tls(url, tls)
        report = _run(plan)
        if as_json:
            json.dump(report_record(report), sys.stdout, indent=2)
            sys.stdout.write("\n")
        else:
            _print(report)
        if output is not None:
            paths = save_report(report, output)
            click.echo(f"saved: {', '.join(map(str, paths))}", err=True)


def _run(plan: BenchPlan) -> Report:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        return run_bench(plan, show)


def _print(report: Report) -> None:
    print_on_stdout(load_table(report))
    click.echo("\nTriton's mean times of each part, at the highest concurrency:\n")
    print_on_stdout(part_table(report))
