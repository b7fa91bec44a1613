"""``build-repo``: from bundles to a Triton model repository."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from onetrunk.cli.bucket_options import bucket_options, requested_buckets
from onetrunk.cli.console import print_published, progress_line, typed_options
from onetrunk.cli.data_options import (
    TRUNK_HELP,
    TRUNK_METAVAR,
    data_option,
    limbs_option,
    max_loss_option,
    refuse_repeated,
    split_names,
    task_dir_option,
)
from onetrunk.cli.embed_option import embed_option
from onetrunk.nn.lean_imports import import_lean
from onetrunk.protocol.command import errors_end_command, print_on_stdout
from onetrunk.protocol.errors import OneTrunkError, UserError, counted
from onetrunk.protocol.head_json import HEAD_JSON, LIMB_JSON
from onetrunk.protocol.names import MANIFEST
from onetrunk.releases.store import Place, StoreUrl

if TYPE_CHECKING:
    from onetrunk.nn.embedding import EmbeddingTap
    from onetrunk.protocol.head_json import LongTexts
    from onetrunk.protocol.manifest import Device, GateResult
    from onetrunk.repository import BuildReport
    from onetrunk.repository.tuning import TuningObjective

_OUTPUT = "model_repository"

_EPILOG = """\b
Examples:
  build-repo --tasks all                       every head in heads/
  build-repo --tasks sst2,cola                 these two and no others
  build-repo --tasks all --embed               and sentence embeddings, for who asks
  build-repo --tasks all --group-heads         fast: one model a tap, not one a head
  build-repo --tasks all --dry-run             only say what would be written
  build-repo --trunk ./my-bert --heads ./mine --output ./repository
  build-repo --tasks all --buckets auto        padded lengths that suit the dev texts
  build-repo --tasks all --buckets auto --texts traffic.jsonl
  build-repo --tasks all --buckets 16,32,48,64,96,128
  build-repo --tasks all --tune                threads for the most texts a second, on this machine
  build-repo --tasks all --tune latency        threads for the quickest answer to one request
  build-repo --tasks all --device gpu          for NVIDIA's container on a machine with a GPU
  build-repo --tasks all --output s3://bucket/onetrunk

\b
In fewer bits:
  build-repo --tasks all --precision bf16      faster on CPUs with AMX
  build-repo --tasks all --precision int8      for CPUs: 1.4 to 2.4 times as fast
  build-repo --tasks all --precision fp16      for GPUs
  build-repo --tasks all --precision trunk=fp32,heads=int8
A task that then loses more than --max-loss on its dev data stops the build.

A check that fails publishes nothing: what was served before stays whole.
Next: serve-repo, then ask-repo "a text"."""


@click.command(epilog=_EPILOG)
@click.option("--tasks", required=True, metavar="all|A,B", help="Heads to serve: all of them, or names with commas.")
@click.option("--trunk", metavar=TRUNK_METAVAR, help=f"The trunk. {TRUNK_HELP}")
@click.option(
    "--heads", type=click.Path(path_type=Path), default="heads", show_default=True, help="The folder of bundles."
)
@limbs_option
@click.option(
    "--output",
    type=Place(),
    default=_OUTPUT,
    show_default=True,
    metavar="FOLDER|STORE",
    help="The repository to write or bring up to date: a folder, or a store as s3://BUCKET/PREFIX or file:///FOLDER.",
)
@embed_option("Serve sentence embeddings too, as the task embedding, which runs only when it is named.")
@click.option(
    "--max-length",
    default=128,
    show_default=True,
    help="Longest text in tokens, up to what the trunk reads; longer ones are cut.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    help="Most tokens of a batch, padding included: it has at most 32 texts, or so many of --max-length. "
    "[default: 16384, or one text]",
)
@click.option(
    "--triton-release",
    default="24.10",
    show_default=True,
    help="The Triton that must load the files; newer files are refused.",
)
@bucket_options
@click.option(
    "--group-heads",
    is_flag=True,
    help="Serve the heads of one tap by one model: fewer processes and hops. A head that is deployed later stays by "
    "itself until the next build.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="P|trunk=P,heads=P",
    help="What models compute in: fp32, bf16 (CPU with AMX), int8 (CPU) or fp16 (GPU). Inputs and outputs stay FP32.",
)
@click.option(
    "--gate",
    type=click.Choice(["on", "release", "off"]),
    default="on",
    show_default=True,
    help="Whether dev data must show that a lower precision loses little: on, by the ONNX Runtime that is installed; "
    "release, by that of --triton-release, which is fetched once.",
)
@max_loss_option("Points of its metric that a task may lose.")
@click.option(
    "--gate-rows",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Dev rows a task, the same sample each time; 0 for all.",
)
@task_dir_option(
    "The folder of task files, which say where dev data are: for --buckets auto, and the gate of a precision."
)
@data_option
@click.option(
    "--tune",
    type=click.Choice(["throughput", "latency"]),
    is_flag=False,
    flag_value="throughput",
    help="Measure every model on this machine, and give each the threads that suit: as few as keep all cores busy, or "
    "as many as make one answer quick. [default: one thread for each model; --tune alone: throughput]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where segments and heads run. The tokenizer stays on the CPU.",
)
@click.option(
    "--sign",
    metavar="KEY.pem",
    type=click.Path(path_type=Path),
    help="Sign the manifest by this ed25519 key, of mode 0600, for --verify-key of serve-repo and deploy-head.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build_repo(
    tasks: str,
    trunk: str | None,
    heads: Path,
    limbs: Path | None,
    output: Path | StoreUrl,
    embed: EmbeddingTap | None,
    embed_long_texts: LongTexts | None,
    max_length: int,
    max_batch_tokens: int | None,
    triton_release: str,
    group_heads: bool,
    precision: str,
    gate: str,
    max_loss: float,
    gate_rows: int,
    task_dir: Path,
    data: Path | None,
    tune: TuningObjective | None,
    device: Device,
    sign: Path | None,
    dry_run: bool,
    as_json: bool,
    **bucket_settings: Any,
) -> None:
    """Build a Triton model repository: the frozen trunk in segments, a model for each head, and the ensembles.

    Every model is exported to ONNX and checked against torch on real text before anything is published.
    A second run with nothing changed writes nothing.
    """
    from onetrunk.export.precision import parse_precision

    with errors_end_command():
        names = _task_names(tasks)
        if embed is None and embed_long_texts is not None:
            raise UserError("--embed-long-texts goes with --embed: add that, or leave it out")
        import_lean()
        requested = requested_buckets(**bucket_settings)
        wanted = parse_precision(precision)
        _refuse_unused_gate_options(precision, gate, wanted.is_reduced)
        _check_bundles(heads, names)
        _check_output(output)
        with _gate_shown(), progress_line() as progress:
            progress("loading torch", 0, 1)
            # Imported here: --help and a mistyped option need no torch.
            from onetrunk.repository import BuildRequest, build_repository
            from onetrunk.repository.buckets import BucketRequest
            from onetrunk.repository.gate_settings import GateSettings
            from onetrunk.repository.working_copy import working_copy

            with working_copy(output, dry_run=dry_run, new=True) as copy:
                report = build_repository(
                    BuildRequest(
                        output=copy.folder,
                        heads=heads,
                        tasks=names,
                        trunk=trunk,
                        limbs=limbs,
                        embed=embed,
                        embed_long_texts=embed_long_texts or "cut",
                        max_length=max_length,
                        max_batch_tokens=max_batch_tokens,
                        buckets=BucketRequest(**requested, task_dir=task_dir, data_root=data),
                        triton_release=triton_release,
                        group_heads=group_heads,
                        precision=wanted,
                        gate=GateSettings(
                            on=gate != "off",
                            max_loss=max_loss,
                            rows=gate_rows,
                            runtime="release" if gate == "release" else "own",
                            task_dir=task_dir,
                            data_root=data,
                        ),
                        tune=tune,
                        device=device,
                        sign=sign,
                        dry_run=dry_run,
                    ),
                    progress=progress,
                )
    if as_json:
        fields = {**dataclasses.asdict(report), "output": str(output), "changed": report.changed}
        fields |= {"precision": report.precision.model_dump(), "gate": _plain_gate(report.gate)}
        fields["placement"] = report.placement.model_dump(mode="json")
        if copy.published is not None:
            fields["published"] = dataclasses.asdict(copy.published)
        click.echo(json.dumps({**fields, "dry_run": dry_run}, indent=2))
    else:
        _print_report(report, output, dry_run, gate != "off")
        print_published(copy)


def _refuse_unused_gate_options(precision: str, gate: str, reduced: bool) -> None:
    """Refuse options of the gate that would have no effect.

    Raises:
        UserError: An option of the gate was given, and there is no gate.
    """
    typed = typed_options()
    options = {"gate": "--gate", "max_loss": "--max-loss", "gate_rows": "--gate-rows"}
    if not reduced and (unused := [option for name, option in options.items() if name in typed]):
        raise UserError(
            f"{' and '.join(unused)}: nothing is lost with --precision {precision}; "
            "give bf16, int8 or fp16, or leave this out"
        )
    if gate == "off" and (unused := [options[name] for name in ("max_loss", "gate_rows") if name in typed]):
        raise UserError(f"{' and '.join(unused)}: there is no gate with --gate off; leave one of them out")


def _task_names(tasks: str) -> list[str] | None:
    names = split_names(tasks)
    if not names:
        raise UserError("--tasks is empty: give all, or names with commas, as in --tasks sst2,cola")
    if "all" in names and len(names) > 1:
        raise UserError(f"--tasks {tasks}: give all, or names with commas, not both")
    refuse_repeated(names)
    return None if names == ["all"] else names


def _check_bundles(heads: Path, names: list[str] | None) -> None:
    """Read each head.json, so that a fault is told before torch is imported, which takes many times as long.

    Raises:
        UserError: There is no such folder, or a file is broken.
    """
    from onetrunk.tasks.head_spec import find_bundles, read_spec

    for folder in find_bundles(heads):
        # A head that another tool exported is described by its head.toml, whatever else is there.
        if (names is None or folder.name in names) and not (folder / "head.toml").exists():
            read_spec(folder)


def _check_output(output: Path | StoreUrl) -> None:
    """Refuse to write a repository among bundles.

    Raises:
        UserError: The folder has some, and is no repository.
    """
    if isinstance(output, Path) and not (output / MANIFEST).exists():
        found = (path.parent.name for name in (HEAD_JSON, LIMB_JSON) for path in output.glob(f"*/{name}"))
        if (bundle := next(found, None)) is not None:
            raise UserError(
                f"--output {output}: found the bundle {bundle} there, allowed is a repository: name another"
            )


def _print_buckets(report: BuildReport) -> None:
    buckets = report.buckets
    for note in buckets.notes:
        click.echo(f"note: {note}", err=True)
    if buckets.fit and not buckets.chosen:
        click.echo("--buckets auto would choose others from these texts", err=True)
    shown = ",".join(map(str, buckets.lengths))
    click.echo(f"texts are padded to {shown} tokens" + (f" ({buckets.fit})" if buckets.fit else ""))


@contextmanager
def _gate_shown() -> Iterator[None]:
    """Show the gate's results on stderr if it refuses, before the error message."""
    try:
        yield
    except OneTrunkError as error:
        from onetrunk.export.errors import GateError

        if isinstance(error, GateError):
            Console(stderr=True, highlight=False).print(_gate_table(error.results))
        raise


def _plain_gate(results: Mapping[str, GateResult]) -> dict[str, dict[str, float | str]]:
    return {
        task: {**result.model_dump(exclude={"key", "data"}), "loss": round(result.loss, 4)}
        for task, result in sorted(results.items())
    }


def _gate_table(results: Mapping[str, GateResult]) -> Table:
    by = ", ".join(dict.fromkeys(result.measured_by for result in results.values() if result.measured_by))
    table = Table(box=None, pad_edge=False, header_style="bold", caption=f"by {by}" if by else None)
    table.add_column("task")
    table.add_column("metric")
    for name in ("rows", "fp32", "reduced", "loss"):
        table.add_column(name, justify="right")
    for task, result in sorted(results.items()):
        scores = [f"{100 * score:.2f}" for score in (result.fp32, result.reduced)]
        table.add_row(task, result.metric, f"{result.rows:,}", *scores, f"{result.loss:+.2f}")
    return table


def _print_placement(report: BuildReport) -> None:
    if report.placement.device != "cpu":
        click.echo(f"segments and heads run on the {report.placement.device.upper()}, the tokenizer on the CPU")
    for model, threads in report.placement.threads.items():
        click.echo(f"{model}: {threads.reason}")
    if report.placement.measured:
        click.echo(report.placement.measured)


def _print_report(report: BuildReport, output: Path | StoreUrl, dry_run: bool, gate_on: bool) -> None:
    if report.finished_earlier:
        click.echo(f"{report.output}: completed an earlier transaction that had been interrupted", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if not report.changed:
        click.echo(f"{report.output}: nothing changed, nothing written ({', '.join(report.tasks)})")
        if report.buckets.fit:
            _print_buckets(report)
        _print_gate(report, gate_on)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    table.add_column("state")
    table.add_column("differs from torch by", justify="right")
    for model, state in report.models.items():
        difference = report.differences.get(model)
        table.add_row(model, state, "" if difference is None else f"{difference:.1e}")
    print_on_stdout(table)
    _print_buckets(report)
    _print_gate(report, gate_on)
    _print_placement(report)
    verb = "would write" if dry_run else "wrote"
    gone = f", removed {counted(len(report.removed), 'model', 'models')}" if report.removed else ""
    click.echo(
        f"{report.output}: {verb} {counted(len(report.written), 'file', 'files')}{gone} in {report.seconds:.1f} s"
    )
    if not dry_run:
        where = "" if str(output) == _OUTPUT else f" {output}"
        click.echo(f'next: serve-repo{where}, then ask-repo "a text"', err=True)


def _print_gate(report: BuildReport, gate_on: bool) -> None:
    if report.gate:
        print_on_stdout(_gate_table(report.gate))
    if not report.gated:
        # With the gate on, only a dry run leaves something open.
        why = "would be found out by the gate" if gate_on else "is not known: no gate, by --gate off"
        click.echo(f"precision {report.precision}: what tasks lose by it {why}", err=True)
