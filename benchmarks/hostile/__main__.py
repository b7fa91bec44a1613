"""Attacks a server as an outsider would, and says what it cost: ``python -m benchmarks.hostile``."""

from __future__ import annotations

import datetime
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.hostile import faults, load, report, starts
from benchmarks.hostile.clients import idle_answers
from benchmarks.hostile.target import Target

ON_ONE_SERVER = {"mixed": load.mixed, "storm": load.storm, "greed": load.greed, "memory": load.memory}
PARTS = (*ON_ONE_SERVER, "rest", "faults", "launcher", "starts", "disk", "spy", "tamper")

_EPILOG = """\b
Examples:
  python -m benchmarks.hostile --output docs/results/hostile     everything; about half an hour
  python -m benchmarks.hostile --only storm,tamper               two parts; the others' results stay
  python -m benchmarks.hostile --only faults --process head_sst2,front

\b
It starts its own servers on free ports of loopback, and stops them. The parts starts, disk and spy
need root, for mounts in a namespace of their own and to become another user; without it they are
left out or do less."""


@click.command(epilog=_EPILOG)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs/results/hostile"),
    show_default=True,
    help="summary.json and details.json are written into it, and the page beside it.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("model_repository"),
    show_default=True,
    help="What build-repo --tasks all wrote.",
)
@click.option("--only", metavar="A,B", help=f"{', '.join(PARTS)}. [default: all]")
@click.option("--requests", default=10_000, show_default=True, help="Requests of mixed, and of storm.")
@click.option("--process", "processes", metavar="A,B", help="Only these processes of faults. [default: all]")
@click.option(
    "--rest-minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, help="The rest after load."
)
def main(
    output: Path, repository: Path, only: str | None, requests: int, processes: str | None, rest_minutes: float
) -> None:
    """Attack a server with load, faults, starvation and another user's curiosity."""
    parts = only.split(",") if only else list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise click.UsageError(f"--only {','.join(unknown)}: allowed are {', '.join(PARTS)}")
    kept = output / "details.json"
    details = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    details |= {"machine": machine(), "date": datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        work = Path(folder)
        if set(parts) & {*ON_ONE_SERVER, "rest"}:
            loaded(details, repository.absolute(), parts, requests, rest_minutes, output)
        others = {
            "faults": lambda: on_a_server(repository, processes),
            "launcher": lambda: starts.launcher_killed(repository),
            "starts": lambda: starts.resources(repository, work),
            "disk": lambda: starts.full_disk_at_restart(repository, work),
            "spy": lambda: starts.watched_by_another_user(repository, work),
            "tamper": lambda: starts.tampered(repository, work),
        }
        for name, run in others.items():
            if name in parts:
                announce(name)
                details[name] = run()
                report.write(details, output)
    click.echo(json.dumps(report.summary(details), indent=1))


def loaded(details: dict, repository: Path, parts: list[str], requests: int, rest_minutes: float, output: Path) -> None:
    """The parts that load one server, and its memory before, after, and after a rest."""
    with Target(repository) as target:
        references = idle_answers(target.ready)
        moments = {"before": asdict(target.memory())}
        for name, run in ON_ONE_SERVER.items():
            if name in parts:
                announce(name)
                details[name] = run(target, references, requests)
                moments[f"after_{name}"] = asdict(target.memory())
                report.write(details, output)
        if "rest" in parts:
            announce(f"rest of {rest_minutes:g} minutes")
            time.sleep(60 * rest_minutes)
            details["rest"] = {"minutes": rest_minutes, **moments, "after_rest": asdict(target.memory())}
            report.write(details, output)


def on_a_server(repository: Path, processes: str | None) -> dict:
    """The faults of one server's processes."""
    with Target(repository) as target:
        idle_answers(target.ready)  # every model has run once
        return faults.faults(target, processes.split(",") if processes else None)


def announce(name: str) -> None:
    """Say which part begins."""
    click.echo(f"{time.strftime('%H:%M:%S')} {name}", err=True)


def machine() -> str:
    """The machine, in words."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next(
        (line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "unknown processor"
    )
    return f"{os.cpu_count()} cores, {processor}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
