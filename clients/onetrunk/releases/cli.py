"""``pull-repo``: a release out of a store, into a folder that a Triton serves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
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
        if isinstance(store, Path):
            raise UserError(f"{store}: no address of a store; give s3://BUCKET/PREFIX or file:///FOLDER")
        verifier = None if verify_key is None else Verifier(verify_key)
        report = pull(open_store(store), repository, pointer=_pointer(release), verifier=verifier)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(report), "repository": str(repository)}, indent=2))
    elif not report.written and not report.removed:
        click.echo(f"{repository}: is release {report.release[:12]} already")
    else:
        gone = f", removed {len(report.removed)} folders" if report.removed else ""
        size = f"{report.bytes_received / 1e6:,.1f} MB"
        click.echo(f"{repository}: release {report.release[:12]}, {len(report.written)} files, {size}{gone}")


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
