"""``deploy-head``: one head into a running server, and out of it, without a failed request."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.console import print_published, progress_line, typed_options
from onetrunk.cli.data_options import (
    TRUNK_HELP,
    TRUNK_METAVAR,
    data_option,
    limbs_option,
    max_loss_option,
    task_dir_option,
)
from onetrunk.cli.deploy_report import plain, show, show_answers, show_replicas, with_server
from onetrunk.cli.embed_option import embed_option
from onetrunk.nn.lean_imports import import_lean
from onetrunk.protocol.admin_key import admin_key_file_option, read_admin_key
from onetrunk.protocol.command import errors_end_command, printable
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.tls import Tls, tls_options
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.releases.store import Place, StoreUrl

if TYPE_CHECKING:
    from onetrunk.deploy import Deployer
    from onetrunk.deploy.operations import Operation

_EPILOG = """\b
Examples:
  deploy-head heads/rte                       add the task, or update it
  deploy-head models:/rte@champion            what an MLflow registry says
  deploy-head --embed                         sentence embeddings, for who asks
  deploy-head heads/rte --dry-run             the files and the config changes
  deploy-head --rollback rte                  the version before, at once
  deploy-head --rollback rte --to 3           another one
  deploy-head --remove rte                    out of the ensembles
  deploy-head --list

\b
Trying a head beside the live one:
  deploy-head --candidate candidates/rte      beside it, by ensemble candidate_rte
  deploy-head --compare texts.jsonl           agreement, metric and latency
  deploy-head --candidate candidates/rte --share 5%
                                              answers 5% of live requests
  deploy-head --promote                       live; or --discard

\b
The rest:
  deploy-head --verify                        manifest, disk and server agree?
  deploy-head --sync                          after a build-repo or a pull-repo
  deploy-head heads/rte --repository s3://bucket/onetrunk
  deploy-head --prune --keep 2                delete older versions

\b
Several servers on one repository, all or none:
  deploy-head heads/rte --servers a:8001,b:8001
  deploy-head heads/rte --servers dns:onetrunk-headless:8001
  deploy-head --list --servers @servers.txt   an address on each line

\b
The server's model-control endpoints ask for a key: one, set once, for the
server and for whoever deploys:
  export ONETRUNK_ADMIN_KEY=$(head -c 24 /dev/urandom | base64)
or in a file that nobody else can read: --admin-key-file.

\b
Exit codes: 0 done (--verify: all agrees), 1 it failed (--verify: it does not;
--list: the servers differ), 2 the input was wrong. What was served before a failure goes on being served.
"""

_ACTIONS = (
    "bundle",
    "embed",
    "candidate",
    "compare",
    "promote",
    "discard",
    "remove",
    "rollback",
    "list",
    "prune",
    "verify",
    "sync",
    "log",
)
# Option -> the actions to which it belongs.
_OWNERS = {
    "embed_long_texts": ("embed",),
    "share": ("candidate", "compare"),
    "stop_errors": ("candidate", "compare"),
    "stop_latency": ("candidate", "compare"),
    "stop_disagreement": ("candidate", "compare"),
    "to": ("rollback",),
    "keep": ("prune",),
    "task": ("compare", "promote", "discard", "log"),
}


class Share(click.ParamType):  # type: ignore[type-arg]
    """A share such as 5% or 0.05."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a share as a number above 0 and at most 1."""
        try:
            found = float(value.removesuffix("%")) / 100 if value.endswith("%") else float(value)
        except ValueError:
            found = 0.0
        if not 0 < found <= 1:
            self.fail(f"{value!r}: give a share above 0% and up to 100%, as 5% or 0.05", param, ctx)
        return found


@click.command(epilog=_EPILOG)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@embed_option("Serve sentence embeddings, as build-repo --embed does.")
@click.option(
    "--candidate", metavar="BUNDLE", type=click.Path(path_type=Path), help="Serve a head beside the live one."
)
@click.option(
    "--share",
    metavar="SHARE",
    type=Share(),
    help="With --candidate: the share of live requests that it answers, in JSON and over gRPC; protocol v2 over HTTP "
    "and multitask_tokens are always answered by the live head.",
)
@click.option(
    "--stop-errors",
    metavar="SHARE",
    type=Share(),
    help="With --share: stop it if it fails to answer more than this share of them.  [default: 2%]",
)
@click.option(
    "--stop-latency",
    metavar="TIMES",
    type=click.FloatRange(min=1),
    help="With --share: stop it if its median takes so many times as long as the live head's.  [default: 3]",
)
@click.option(
    "--stop-disagreement",
    metavar="SHARE",
    type=Share(),
    help="With --share: stop it if it answers more than this share of the texts differently.  [default: never]",
)
@click.option("--compare", metavar="FILE", type=click.Path(path_type=Path), help="Candidate against live, on texts.")
@click.option("--promote", is_flag=True, help="Make the candidate live.")
@click.option("--discard", is_flag=True, help="End the candidate's trial.")
@click.option("--remove", metavar="TASK", help="Take a task out; --rollback brings it back.")
@click.option("--rollback", metavar="TASK", help="Serve the version before again.")
@click.option("--to", metavar="VERSION", type=click.IntRange(min=1), help="With --rollback: which version.")
@click.option("--list", "list_", is_flag=True, help="Tasks, versions, taps, scores, drift.")
@click.option("--prune", is_flag=True, help="Delete older versions, and tasks that were removed.")
@click.option("--keep", metavar="N", type=click.IntRange(min=1), help="With --prune: versions of a head.  [default: 2]")
@click.option("--verify", is_flag=True, help="Whether manifest, disk and server agree.")
@click.option("--sync", is_flag=True, help="Make the server serve what the files say.")
@click.option("--log", is_flag=True, help="What was deployed, by whom.")
@click.option("--task", metavar="TASK", help="Which candidate, where there are several.")
@click.option(
    "--repository",
    type=Place(),
    default="model_repository",
    show_default=True,
    metavar="FOLDER|STORE",
    help="The repository's folder; or a store as s3://BUCKET/PREFIX, of which no server is asked.",
)
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="The server's gRPC endpoint.")
@click.option(
    "--servers",
    metavar="LIST",
    help="Several servers on the repository, in place of --url: addresses separated by commas, dns:NAME:PORT for all "
    "that a name has, or @FILE with one on each line. Each proves a change before any serves it.",
)
@click.option(
    "--replica-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="With --servers: the time of one server for one step.",
)
@admin_key_file_option
@tls_options
@click.option("--insecure", is_flag=True, help="Send the admin key to another machine without TLS.")
@click.option("--offline", is_flag=True, help="Change the files only; a server serves them when it starts.")
@click.option("--trunk", metavar=TRUNK_METAVAR, help=f"The trunk. {TRUNK_HELP}")
@limbs_option
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Wait for another deployment to end, instead of giving up.",
)
@max_loss_option("Points that a head may lose by the repository's precision.", "as the repository was built")
@task_dir_option("The folder of task files, which say where the dev data for --max-loss are.")
@data_option
@click.option(
    "--sign", metavar="KEY.pem", type=click.Path(path_type=Path), help="Sign the manifest by this ed25519 key."
)
@click.option(
    "--verify-key",
    metavar="PUB.pem",
    type=click.Path(path_type=Path),
    help="Refuse a repository whose manifest this ed25519 key has not signed.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; show files and config changes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def deploy_head(
    repository: Path | StoreUrl,
    url: str,
    servers: str | None,
    replica_timeout: float,
    admin_key_file: Path | None,
    tls: Tls | None,
    insecure: bool,
    offline: bool,
    trunk: str | None,
    limbs: Path | None,
    wait: float,
    max_loss: float | None,
    task_dir: Path,
    data: Path | None,
    sign: Path | None,
    verify_key: Path | None,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Change what a running server serves, one head at a time, without a failed request.

    BUNDLE is a folder that train-head wrote, or one with a head.onnx and a head.toml from elsewhere; hf:OWNER/NAME of a
    model hub; or models:/NAME@ALIAS of the MLflow registry in MLFLOW_TRACKING_URI.
    It is exported, checked against torch, loaded, proved under another name, and only then switched to.
    The version before stays loaded, for --rollback.
    """
    asked = {name.rstrip("_"): value for name, value in asked.items()}
    with errors_end_command():
        action = _chosen_action(asked, dry_run)
        if isinstance(repository, StoreUrl):
            _refuse_server_options(repository, action)
            offline = True
        import_lean()
        # Threads that wait for each other would otherwise spin, and take the cores from the server that is running.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Imported here: --help and a mistyped option need none of it.
        from onetrunk.deploy import Deployer, DeploymentReport
        from onetrunk.repository.gate_settings import GateOverrides
        from onetrunk.repository.working_copy import working_copy

        if servers is not None and (offline or "url" in typed_options()):
            raise UserError(f"--servers and {'--offline' if offline else '--url'}: give one of them")
        gate = GateOverrides(max_loss, task_dir, data)
        place, key = (None, None) if offline else (url, read_admin_key(admin_key_file))
        with (
            _replicas_of_failure(as_json),
            progress_line() as progress,
            working_copy(repository, verify_key=verify_key, dry_run=dry_run, wait_s=wait) as copy,
            Deployer(
                copy.folder,
                url=place,
                servers=servers,
                replica_timeout_s=replica_timeout,
                trunk=trunk,
                limbs=limbs,
                admin_key=key,
                tls=tls,
                insecure=insecure,
                wait_s=wait,
                gate=gate,
                sign=sign,
                verify_key=verify_key,
                progress=progress,
            ) as deployer,
        ):
            result = _carry_out(action, asked, deployer, dry_run)
            replicas = deployer.replicas() if action in ("list", "verify") else ()
            single = deployer.single() if action == "list" else None
    if as_json:
        told = plain(result) if single is None else with_server(result, single)
        if servers is not None and action in ("list", "verify"):
            told = {("tasks" if action == "list" else "differences"): told, "replicas": plain(list(replicas))}
        click.echo(json.dumps(told, indent=2))
    else:
        show(result, dry_run)
        show_replicas(replicas)
        if action not in ("list", "log", "verify"):
            print_published(copy)
    for line in single.differences if single is not None else ():
        click.echo(f"note: {printable(line)}", err=True)
    if action == "verify" and not result and not as_json:
        whom = "disk" if offline else "disk and server" if servers is None else "disk and servers"
        click.echo(f"manifest{' and' if offline else ','} {whom} agree")
    differ = any(replica.differences for replica in replicas)
    unknown = isinstance(result, DeploymentReport) and any(one.state == "unknown" for one in result.replicas)
    if (action == "verify" and result) or differ or unknown:
        raise SystemExit(1)


@contextlib.contextmanager
def _replicas_of_failure(as_json: bool) -> Iterator[None]:
    """Show what became of each replica if an operation failed on some."""
    from onetrunk.deploy.fleet import FleetError

    try:
        yield
    except FleetError as error:
        if as_json:
            click.echo(json.dumps({"error": str(error), "replicas": plain(list(error.replicas))}, indent=2))
        else:
            show_answers(error.replicas)
        raise


def _goes_with(option: str) -> str:
    return f"--{option.replace('_', '-')} goes with {' or '.join(f'--{owner}' for owner in _OWNERS[option])} only"


def _chosen_action(asked: dict[str, Any], dry_run: bool) -> str:
    """Return the one action that was asked for.

    Raises:
        UserError: None was asked for, or several, or one with an option that belongs to another.
    """
    # Tap 0 is one.
    chosen = [name for name in _ACTIONS if asked[name] or (name == "embed" and asked[name] is not None)]
    if chosen == ["candidate", "compare"]:
        chosen = ["compare"]
    if asked["share"] is not None and asked["candidate"] is None:
        raise UserError("--share goes with --candidate only: give the candidate's bundle again to change its share")
    if not chosen and (lone := next((option for option in _OWNERS if asked[option] is not None), None)) is not None:
        raise UserError(_goes_with(lone))
    if len(chosen) != 1:
        found = " and ".join("a bundle" if name == "bundle" else f"--{name}" for name in chosen) or "nothing to do"
        raise UserError(f"{found}: give one bundle, or one of {', '.join(f'--{name}' for name in _ACTIONS[1:])}")
    (name,) = chosen
    for option, owners in _OWNERS.items():
        if asked[option] is not None and name not in owners:
            raise UserError(_goes_with(option))
    if name != "embed" and asked["bundle"] is None and asked["candidate"] is None:
        for option in ("max_loss", "task_dir", "data"):
            if option in typed_options():
                raise UserError(f"--{option.replace('_', '-')} is for a head that comes in: a bundle, or --candidate")
    if dry_run and name in ("compare", "list", "verify", "sync", "log"):
        raise UserError(f"--{name} has no --dry-run")
    return name


def _refuse_server_options(store: StoreUrl, action: str) -> None:
    """Refuse what asks a server: those that serve a store's release have folders of their own.

    Raises:
        UserError: A server is to be asked.
    """
    typed = typed_options()
    asked = [f"--{name}" for name in ("url", "servers", "insecure") if name in typed]
    if asked or action in ("sync", "compare"):
        raise UserError(
            f"{' and '.join(asked) or f'--{action}'}: {store} is a store, and no server reads it while it runs: where "
            f"a server is, pull-repo {store} FOLDER, then deploy-head --sync --repository FOLDER"
        )


def _carry_out(action: str, asked: dict[str, Any], deployer: Deployer, dry_run: bool) -> Any:
    """Return a report, a comparison, or a list to show."""
    task = asked["task"]
    if action == "compare":
        tried = deployer.run(_operation("candidate", asked)).task if asked["candidate"] else task
        return deployer.compare(asked["compare"], tried)
    if action == "list":
        return deployer.tasks()
    if action == "verify":
        return deployer.verify()
    if action == "sync":
        return deployer.sync()
    if action == "log":
        return [entry for entry in deployer.history.entries() if task in (None, entry.get("task"))]
    return deployer.run(_operation(action, asked), dry_run=dry_run)


def _operation(action: str, asked: dict[str, Any]) -> Operation:
    from onetrunk.deploy.operations import Candidate, Deploy, Discard, Embed, Promote, Prune, Remove, Rollback

    def found(bundle: Path) -> tuple[Path, Mapping[str, str]]:
        # Imported here: the other operations need no torch.
        from onetrunk.nn.bundle_source import find_bundle, is_remote

        if not is_remote(bundle):
            return bundle, {}
        source = find_bundle(bundle)
        return source.folder, source.about

    def candidate(folder: Path, about: Mapping[str, str]) -> Operation:
        return Candidate(folder, _split(asked), about)

    operations: dict[str, Callable[[], Operation]] = {
        "bundle": lambda: Deploy(*found(asked["bundle"])),
        "embed": lambda: Embed(asked["embed"], asked["embed_long_texts"] or "cut"),
        "candidate": lambda: candidate(*found(asked["candidate"])),
        "promote": lambda: Promote(asked["task"]),
        "discard": lambda: Discard(asked["task"]),
        "remove": lambda: Remove(asked["remove"]),
        "rollback": lambda: Rollback(asked["rollback"], asked["to"]),
        "prune": lambda: Prune(asked["keep"] or 2),
    }
    return operations[action]()


def _split(asked: dict[str, Any]) -> TrafficSplit | None:
    bounds = {name: asked[f"stop_{name}"] for name in ("errors", "latency", "disagreement")}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if asked["share"] is None:
        if given:
            raise UserError(f"--stop-{next(iter(given))} goes with --share only")
        return None
    return TrafficSplit(share=asked["share"], **given)
