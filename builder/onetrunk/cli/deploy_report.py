"""What ``deploy-head`` prints: reports, tables of tasks and replicas, comparisons, and the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from onetrunk.protocol.command import print_on_stdout, printable
from onetrunk.protocol.errors import counted

if TYPE_CHECKING:
    from onetrunk.deploy.comparison import Comparison
    from onetrunk.deploy.deployer import DeploymentReport
    from onetrunk.deploy.fleet import ReplicaAnswer
    from onetrunk.deploy.history import ListedTask
    from onetrunk.deploy.reconcile import ReplicaState

_STATES = {
    "done": "done",
    "failed": "failed",
    "back": "serves what it served before",
    "unknown": "what it serves is not known",
}


def plain(result: Any) -> Any:
    """Return a result as what JSON can hold."""
    from onetrunk.deploy.history import ListedTask

    if isinstance(result, list):
        return [plain(item) for item in result]
    if isinstance(result, ListedTask) and result.split is not None:
        return plain(dataclasses.replace(result, split=None)) | {"split": result.split.model_dump()}
    return dataclasses.asdict(result) if dataclasses.is_dataclass(result) and not isinstance(result, type) else result


def with_server(rows: list[ListedTask], single: ReplicaState) -> list[dict[str, Any]]:
    """Return the tasks as what JSON can hold, each with what the server serves of it, as far as it says."""
    served = [{} if single.serves is None else {single.address: single.serves.get(row.task)} for row in rows]
    return [{**plain(row), "serves": one} for row, one in zip(rows, served, strict=True)]


def show(result: Any, dry_run: bool) -> None:
    """Show what an operation did, found or compared.

    Args:
        result: A report, a comparison, tasks, lines of the log, or differences.
        dry_run: Whether it is what would be done.
    """
    from onetrunk.deploy.comparison import Comparison
    from onetrunk.deploy.deployer import DeploymentReport

    if isinstance(result, DeploymentReport):
        _show_report(result, dry_run)
    elif isinstance(result, Comparison):
        _show_comparison(result)
    elif result and isinstance(result[0], dict):
        _show_log(result)
    elif result and isinstance(result[0], str):
        click.echo(printable("\n".join(result)))
    elif result:
        _show_tasks(result)


def _show_report(report: DeploymentReport, dry_run: bool) -> None:
    for line in report.settled:
        click.echo(f"first: {line}", err=True)
    version, before = report.to_version, report.from_version
    if not report.changed:
        served = f"{report.task}: version {version} is served already; " if report.task else ""
        click.echo(f"{served}nothing to do")
        return
    folders = counted(len(report.removed), "folder", "folders")
    if dry_run:
        for name in report.written:
            click.echo(f"would write {name}")
        for name in report.removed:
            click.echo(f"would remove {name}/")
        if report.diff:
            click.echo(report.diff, nl=False)
        moves = f"{report.task}: version {before or 'none'} -> {version or 'none'}; " if report.task else ""
        gone = f", {folders} removed" if report.removed else ""
        written = f"{counted(len(report.written), 'file', 'files')} would be written"
        click.echo(f"{moves}{written}{gone}; no server was asked, nothing exported", err=True)
        _show_notes(report)
        return
    former = f" (before: {before})" if before not in (None, version) else ""
    done = {
        "deploy": f"{report.task} version {version} is live{former}",
        "candidate": f"{report.task} version {version} is tried as {report.task}_candidate"
        + (f", beside version {before}" if before else ""),
        "promote": f"{report.task} version {version} is live{former}",
        "rollback": f"{report.task} version {version} is live again{former}",
        "discard": f"candidate version {before} of {report.task} is discarded; "
        + (f"version {version} is live" if version else "none is live"),
        "remove": f"{report.task} is no longer served{former}",
        "prune": f"removed {folders}: {', '.join(report.removed)}",
        "sync": f"the server{'s serve' if report.replicas else ' serves'} what the files say",
    }[report.action]
    click.echo(f"{done}, {report.seconds['all']:.2f} s")
    _show_notes(report)
    show_answers(report.replicas)


def _show_notes(report: DeploymentReport | Comparison) -> None:
    for note in report.notes:
        click.echo(printable(note), err=True)


def show_answers(answers: Sequence[ReplicaAnswer]) -> None:
    """Show what became of each replica in an operation."""
    if not answers:
        return
    steps = dict.fromkeys(step for answer in answers for step in answer.seconds)
    table = _table("replica", "result", *(f"{step}, s" for step in steps), "reason")
    for answer in answers:
        seconds = [_shown(answer.seconds.get(step), ".2f", "") for step in steps]
        table.add_row(answer.address, _STATES[answer.state], *seconds, escape(printable(answer.reason)))
    print_on_stdout(table)


def show_replicas(replicas: Sequence[ReplicaState]) -> None:
    """Show what each replica serves."""
    if not replicas:
        return
    table = _table("replica", "serves", "differs from the files")
    for replica in replicas:
        served = replica.serves or {}
        serves = ", ".join(f"{task} {version}" for task, version in sorted(served.items()))
        table.add_row(
            replica.address,
            "not known" if replica.serves is None else serves,
            escape(printable("; ".join(replica.differences))),
        )
    print_on_stdout(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    return table


def _show_comparison(result: Comparison) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (result.task, "live", "candidate"):
        table.add_column(column, justify="left" if column == result.task else "right")
    table.add_row("version", _shown(result.live_version, "d"), str(result.candidate_version))
    if result.labelled:
        table.add_row(
            f"{result.metric}, {counted(result.labelled, 'text', 'texts')}",
            _shown(result.live_score),
            _shown(result.candidate_score),
        )
    table.add_row("ms, median", _shown(result.live_p50_ms, ".1f"), _shown(result.candidate_p50_ms, ".1f"))
    table.add_row("ms, 99 %", _shown(result.live_p99_ms, ".1f"), _shown(result.candidate_p99_ms, ".1f"))
    print_on_stdout(table)
    if result.agreement is not None:
        texts = counted(result.rows, "text", "texts")
        share = f"agree on {result.agreement:.1%} of {texts}"
        number = f"correlate by {result.agreement:.3f} over {texts}"
        agreed = share if result.agreement_is == "share" else number
        click.echo(f"{agreed}; scores differ by {result.mean_difference:.3f} on average")
    for text, live, candidate in result.disagreements:
        click.echo(printable(f"  {live} -> {candidate}   {text:.100}"))
    _show_notes(result)


def _show_tasks(rows: list[ListedTask]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "served", "on disk", "loaded", "tried", "tap", "layers", "dev score", "PSI", "since (UTC)"):
        table.add_column(column, no_wrap=column in ("task", "since (UTC)"))
    for row in rows:
        since = "" if row.since is None else row.since[:16].replace("T", " ")
        numbers = [", ".join(map(str, versions)) for versions in (row.versions, row.loaded)]
        table.add_row(
            row.task, _shown(row.served, "d", "removed"), *numbers, _shown(row.candidate, "d", ""),
            _shown(row.tap, "d", ""), _shown(row.layers, "d", ""), _shown(row.score, nothing=""), _psi(row), since,
        )  # fmt: skip
    print_on_stdout(table)
    for row in rows:
        if row.limb is not None:
            click.echo(f"{row.task}: stands on limb {row.limb}")
        if row.split is not None:
            share = f"{100 * row.split.share:.3g}%"
            click.echo(f"{row.task}: candidate version {row.candidate} answers {share} of the requests")
        for address, trial in row.trials.items():
            click.echo(f"{row.task}: candidate on {address}: {_told(trial)}")


def _told(trial: Mapping[str, Any]) -> str:
    """Return how a candidate does on one server."""
    if trial.get("stopped"):
        return printable(f"stopped: {trial['stopped']}")
    latency, disagreement = trial.get("latency"), trial.get("disagreement")
    more = f", {latency:.2g} times the live head's time" if latency is not None else ""
    more += f", {disagreement:.1%} of the texts answered differently" if disagreement is not None else ""
    return f"{trial.get('requests')} requests of late, {trial.get('errors', 0.0):.1%} not answered{more}"


def _psi(row: ListedTask) -> str:
    """Return the greatest population stability index of a task."""
    told = row.drift.get("psi") if isinstance(row.drift, dict) else None
    numbers = [one for one in told.values() if isinstance(one, int | float)] if isinstance(told, dict) else []
    return f"{max(numbers):.2f}" if numbers else ""


def _show_log(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        versions = " -> ".join(str(entry.get(end) or "-") for end in ("from", "to"))
        reason = f" ({entry['reason']})" if entry.get("reason") else ""
        if isinstance(where := entry.get("from_where"), dict):
            reason += f" [{', '.join(f'{name} {value}' for name, value in where.items())}]"
        action = f"{entry.get('action')} {entry.get('task') or ''}".strip()
        line = f"{entry.get('time')}  {entry.get('who')}  {action}  {versions}  {entry.get('result')}{reason}"
        click.echo(printable(line).replace("\n", " "))


def _shown(value: float | None, form: str = ".3f", nothing: str = "-") -> str:
    return nothing if value is None else format(value, form)
