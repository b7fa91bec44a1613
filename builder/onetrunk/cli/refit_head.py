"""``refit-head``: what is fitted on the dev data, for heads that are trained already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from onetrunk.cli.console import progress_line
from onetrunk.cli.training_options import echo_notes, load_named_tasks, refit_options, task_arguments
from onetrunk.protocol.command import errors_end_command, print_on_stdout
from onetrunk.protocol.errors import counted

if TYPE_CHECKING:
    from onetrunk.training import RefitResult

_EPILOG = """\b
Examples:
  refit-head sst2                 heads/sst2, by tasks/sst2.toml
  refit-head --tasks all          every task in tasks/
  refit-head sst2 --dry-run       what would be written

\b
Next: deploy-head heads/sst2, or build-repo --tasks all."""


@click.command(epilog=_EPILOG)
@task_arguments
@refit_options
@click.option("--dry-run", is_flag=True, help="Write nothing; show what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def refit_head(
    tasks: tuple[str, ...],
    task_list: str | None,
    task_dir: Path,
    trunk: str | None,
    heads: Path,
    limbs: Path | None,
    cache: Path | None,
    data: Path | None,
    device: Any,
    skip_bad_rows: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fit finished heads to their dev data anew, without training.

    That is the temperature of classification, the thresholds of multilabel, and the reference of all kinds, with which
    a server compares its answers to see drift. Only head.json and the card are written. TASK is the name of a file in
    the task folder, or a path to a task file.
    """
    with errors_end_command():
        chosen = load_named_tasks(tasks, task_list, task_dir)
        with progress_line() as progress:
            progress("loading torch and the trunk", 0, 1)
            # Imported here: --help and a mistyped option need no torch.
            from onetrunk.nn.trunk import load_trunk
            from onetrunk.tasks.head_spec import limbs_of
            from onetrunk.training import refit

            loaded = load_trunk(trunk, progress, cache=cache)
            loaded.limbs = limbs_of(heads, limbs)
            echo_notes(loaded.notes)
            done: list[RefitResult] = []
            try:
                for task in chosen:
                    done.append(
                        refit(
                            task,
                            loaded,
                            heads=heads,
                            cache=cache,
                            data_root=data,
                            device=device,
                            skip_bad_rows=skip_bad_rows,
                            dry_run=dry_run,
                            progress=progress,
                        )
                    )
            finally:
                # What is written is written, also where a later task fails.
                if done:
                    _show(done, as_json, dry_run)


def _show(results: list[RefitResult], as_json: bool, dry_run: bool) -> None:
    if as_json:
        click.echo(json.dumps([_values(result) for result in results], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "task",
        "dev score",
        "test score",
        "temperature",
        "ECE before",
        "ECE after",
        "by chance",
        "reference",
    ):
        table.add_column(column, no_wrap=True, justify="left" if column == "task" else "right")
    for result in results:
        spec, fitted = result.spec, result.spec.fitted
        error = fitted.get("calibration_error", {})
        table.add_row(
            spec.task,
            f"{spec.metric} {100 * spec.scores[spec.metric]:.1f}",
            f"{100 * spec.test.scores[spec.metric]:.1f}" if spec.test is not None else "",
            f"{fitted['temperature']:g}" if "temperature" in fitted else "",
            *(f"{100 * error[when]:.1f} %" if when in error else "" for when in ("before", "after", "by_chance")),
            counted(spec.reference.rows, "text", "texts") if spec.reference is not None else "none",
        )
    print_on_stdout(table)
    for result in results:
        for note in (*result.notes, *([result.spec.fitted["note"]] if "note" in result.spec.fitted else [])):
            click.echo(f"{result.spec.task}: note: {note}", err=True)
    if dry_run:
        click.echo("nothing was written", err=True)


def _values(result: RefitResult) -> dict[str, Any]:
    spec = result.spec
    return {
        "task": spec.task,
        "bundle": str(result.bundle),
        "scores": spec.scores,
        "test": spec.test.model_dump(mode="json") if spec.test is not None else None,
        "notes": result.notes,
        "fitted": spec.fitted,
        "fitted_before": result.before.fitted,
        "reference": spec.reference.model_dump(mode="json", exclude_none=True) if spec.reference is not None else None,
    }
