"""``push-head`` and ``pull-head``: bundles into a model hub, and out of a hub or a registry."""

from __future__ import annotations

from pathlib import Path

import click

from onetrunk.nn.lean_imports import import_lean
from onetrunk.protocol.command import errors_end_command

_PUSH = """\b
Examples:
  push-head heads/sst2 hf:me/sst2-head
  push-head heads/sst2 hf:me/sst2-head --private

\b
The token is that of the hub's own tools: HF_TOKEN, or the one that hf auth login
has saved."""

_PULL = """\b
Examples:
  pull-head hf:me/sst2-head                   into heads/sst2
  pull-head hf:me/sst2-head@v2 --heads other
  pull-head models:/sst2@champion             out of an MLflow registry

\b
The registry is the one in MLFLOW_TRACKING_URI. deploy-head takes the same names:
  deploy-head models:/sst2@champion"""


@click.command(epilog=_PUSH)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("target")
@click.option("--private", is_flag=True, help="If the repository is made: only its owner sees it.")
def push_head(bundle: Path, target: str, private: bool) -> None:
    """Write BUNDLE into TARGET, a repository hf:OWNER/NAME of the Hugging Face hub, in one commit."""
    with errors_end_command():
        import_lean()
        # Imported here: --help needs no torch.
        from onetrunk.nn.bundle_source import push_bundle

        click.echo(push_bundle(bundle, target, private=private))


@click.command(epilog=_PULL)
@click.argument("source")
@click.option(
    "--heads", type=click.Path(path_type=Path), default="heads", show_default=True, help="The folder of bundles."
)
def pull_head(source: str, heads: Path) -> None:
    """Copy a bundle from SOURCE into the folder of bundles, where build-repo finds it."""
    with errors_end_command():
        import_lean()
        from onetrunk.nn.bundle_source import pull_bundle
        from onetrunk.tasks.head_spec import read_spec

        folder = pull_bundle(source, heads)
        click.echo(folder)
        if limb := read_spec(folder).limb_id:
            click.echo(f"note: it stands on limb {limb}: get that, too, as {limb.name} in the folder --limbs", err=True)
