"""``pull-repo``: a release out of a store, into a folder that a Triton serves; ``prune-releases``: old ones removed."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError, counted
from onetrunk.releases.store import Place, StoreUrl

if TYPE_CHECKING:
    from onetrunk.releases.release import Pointer

_EPILOG = """\b
Examples:
  pull-repo s3://bucket/onetrunk                      into model_repository
  pull-repo s3://bucket/onetrunk /models              as an init container does
  pull-repo file:///mnt/share/onetrunk /models
  pull-repo s3://bucket/onetrunk /models && deploy-head --sync --repository /models

\b
Keys and endpoint of an object store come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_PROFILE), ~/.aws or the machine's role.

\b
Exit codes: 0 done, 1 it failed, 2 the input was wrong. After a failure the folder
is as it was."""


@click.command(epilog=_EPILOG)
@click.argument("store", type=Place())
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False), default="model_repository")
@click.option("--release", metavar="HASH", help="This release.  [default: the one that the store says is served]")
@click.option(
    "--verify-key",
    metavar="PUB.pem",
    type=click.Path(path_type=Path),
    help="Refuse a manifest that this ed25519 key has not signed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def pull_repo(
    store: Path | StoreUrl, repository: Path, release: str | None, verify_key: Path | None, as_json: bool
) -> None:
    """Make the folder REPOSITORY equal to the release in STORE.

    Only files that differ are fetched. All of them are compared with the manifest's hashes before the first is moved
    in. What was only in the folder, such as a head that was deployed there, is gone after it.
    """
    from onetrunk.protocol.signature import Verifier
    from onetrunk.releases.release import pull
    from onetrunk.releases.store import open_store

    with errors_end_command():
        verifier = None if verify_key is None else Verifier(verify_key)
        report = pull(open_store(_store(store)), repository, pointer=_pointer(release), verifier=verifier)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(report), "repository": str(repository)}, indent=2))
    elif not report.written and not report.removed:
        click.echo(f"{repository} is release {report.release[:12]} already")
    else:
        gone = f", removed {counted(len(report.removed), 'folder', 'folders')}" if report.removed else ""
        came = f"{counted(len(report.written), 'file', 'files')}, {report.bytes_received / 1e6:,.1f} MB"
        click.echo(f"{repository}: release {report.release[:12]}, {came}{gone}")


_PRUNE_EPILOG = """\b
Examples:
  prune-releases s3://bucket/onetrunk --dry-run       which releases there are
  prune-releases s3://bucket/onetrunk --keep 5

\b
A server that serves file:///FOLDER reads the release where it is: keep what your
servers serve. Keys and endpoint are found as by pull-repo.

\b
Exit codes: 0 done, 1 it failed, 2 the input was wrong."""


@click.command(epilog=_PRUNE_EPILOG)
@click.argument("store", type=Place())
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many releases stay, by when they were published last.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; show what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prune_releases(store: Path | StoreUrl, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old releases from STORE, with their logs and what writers left there that died.

    The current release stays in any case, and so does all that was written within the last day.
    """
    from onetrunk.releases.prune import prune
    from onetrunk.releases.store import open_store

    with errors_end_command():
        report = prune(open_store(_store(store)), keep, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
        return
    gone = "would go" if dry_run else "removed"
    for one in (*report.kept, *report.removed):
        at = "never completed     " if one.published is None else _utc(one.published)
        state = "current" if one.current else gone if one in report.removed else ""
        click.echo(f"{one.release}  {at}  {state}".rstrip())
    click.echo(f"{store}: {gone}: {len(report.removed)} releases, {report.files} files", err=True)
    if (more := len(report.kept) - keep) > 0:
        click.echo(
            f"note: {more} more than --keep {keep} stay: the current release, and what was written within the last day",
            err=True,
        )


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _store(place: Path | StoreUrl) -> StoreUrl:
    """Return the address of a store.

    Raises:
        UserError: It is a folder.
    """
    if isinstance(place, Path):
        raise UserError(f"{place}: no address of a store; give s3://BUCKET/PREFIX or file:///FOLDER")
    return place


def _pointer(release: str | None) -> Pointer | None:
    """Return the pointer to a release that the user names.

    Raises:
        UserError: It is no hash.
    """
    from pydantic import ValidationError

    from onetrunk.releases.release import Pointer

    try:
        return None if release is None else Pointer(release=release)
    except ValidationError:
        raise UserError(f"--release {release}: a release is named by the 64 digits of its hash") from None
