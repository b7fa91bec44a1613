"""The command `serve-repo`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from onetrunk.protocol.admin_key import admin_key_file_option, read_admin_key
from onetrunk.protocol.cache import cache_root
from onetrunk.protocol.command import as_printed, errors_end_command
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_HEADER, ADMIN_KEY_VARIABLE
from onetrunk.releases.store import Place, StoreUrl
from onetrunk.serving.front.options import front_options, take_front_options

if TYPE_CHECKING:
    from onetrunk.serving.launcher import Server

EPILOG = f"""\b
Examples:
  serve-repo                                  serve model_repository on 127.0.0.1
  serve-repo out/repo --grpc-port 9001        another repository, another port
  serve-repo s3://bucket/onetrunk             the release of an object store
  serve-repo --log triton.log --verbose       log every request to a file
  serve-repo --json > ready.json              urls and tasks for a script
  serve-repo --host 0.0.0.0                   for the whole network (see below)

\b
Clients reach a front, and Triton stands behind it on sockets of this user alone.
Loading models, shared memory, trace and logging settings are closed. Set
{ADMIN_KEY_VARIABLE}, or --admin-key-file, to a key of your own
to open them to those who send it in the header {ADMIN_HEADER}
(over gRPC: {ADMIN_GRPC_HEADER}), as deploy-head does.

\b
Exit codes: 0 stopped, 1 the server failed, 2 the input was wrong.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("repository", type=Place(), default=Path("model_repository"))
@click.option("--host", default="127.0.0.1", help="Address or name to listen on.")
@click.option(
    "--http-port", default=8000, type=click.IntRange(0, 65535), help="For HTTP. 0 takes a free port, here and below."
)
@click.option("--grpc-port", default=8001, type=click.IntRange(0, 65535), help="Where ask-repo asks.")
@click.option("--metrics-port", default=8002, type=click.IntRange(0, 65535), help="For Prometheus.")
@click.option(
    "--local",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the release of an object store is served from.  [default: a folder of the caches]",
    show_default=False,
)
@click.option("--log", "log_path", type=click.Path(dir_okay=False, path_type=Path), help="Append Triton's log here.")
@front_options
@click.option("--front-workers", default=1, type=click.IntRange(1, 64), help="Processes of the front.")
@click.option("--verbose", is_flag=True, help="Log every request.")
@click.option("--verify/--no-verify", default=True, help="Refuse files that are not as the manifest says.")
@click.option(
    "--verify-key",
    metavar="PUB.pem",
    type=click.Path(path_type=Path),
    help="Refuse a manifest that this ed25519 key has not signed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
@admin_key_file_option
def serve_repo(
    repository: Path | StoreUrl, local: Path | None, as_json: bool, admin_key_file: Path | None, **options: Any
) -> None:
    """Serve REPOSITORY with a real Triton, without Docker, until Ctrl-C or SIGTERM.

    Ready means that every task has answered. The process of a model that dies is restarted.
    """
    from onetrunk.serving.launcher import Server

    console = Console(stderr=True)
    logging.getLogger("onetrunk.serving").addHandler(RichHandler(console=console, show_path=False))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C
    with errors_end_command():
        if options["verify_key"] is not None and not options["verify"]:
            raise UserError("--verify-key and --no-verify: a signature is about files that are compared; leave one out")
        front = take_front_options(options)
        path = find_repository(repository, local, options["verify_key"], console)
        server = Server(
            path,
            admin_key=read_admin_key(admin_key_file),
            api_keys=front.api_keys,
            limits=front.limits,
            tls=front.tls,
            tracing=front.tracing,
            sample=front.sample,
            **options,
        )
        try:
            start(server, console)
            announce(server, path, console, as_json)
            if front.sample is not None:
                console.print(front.sample.notice(), highlight=False, markup=False, soft_wrap=True)
            server.wait()
        except KeyboardInterrupt:
            console.print("Stopping.")
        finally:
            # A second signal must not leave processes behind. Stopping is bounded in time.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            server.stop()


def find_repository(repository: Path | StoreUrl, local: Path | None, verify_key: Path | None, console: Console) -> Path:
    """Return the folder to serve; of an object store, the release is brought there first.

    Args:
        repository: A repository's folder, or a store of releases.
        local: The folder for an object store's release; None for one of the caches.
        verify_key: The file of the public key by which the release must be signed; None for no signature.
        console: The console for people.

    Raises:
        UserError: Nothing has been published, the release is not as its manifest says, or is not signed by the key.
            Or another server of this machine serves from the same folder, which a pull would change below it.
        OneTrunkError: The store does not answer, or the disk is full.
    """
    from onetrunk.protocol.signature import Verifier
    from onetrunk.releases.release import pull, release_folder
    from onetrunk.releases.store import FolderStore, open_store

    if isinstance(repository, Path):
        if local is not None:
            raise UserError(f"--local is for an object store, and {repository} is a folder: leave it out")
        return repository
    store = open_store(repository)
    if isinstance(store, FolderStore) and local is None:
        return release_folder(store)  # no server changes it, so all may share it, and mount it for reading only
    path = local or cache_root() / "served" / repository.key
    _hold(path)
    with console.status(f"Fetching the release of {repository}"):
        report = pull(store, path, verifier=None if verify_key is None else Verifier(verify_key))
    size = f"{report.bytes_received / 1e6:,.1f} MB"
    console.print(f"Release {report.release[:12]} of {repository}: fetched {size} into {path}", highlight=False)
    return path


def _hold(folder: Path) -> None:
    """Keep a folder for this process, until it ends."""
    mark = folder.parent / f".{folder.name}.served"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another serve-repo serves from it: end that one, or give another by --local"
        ) from None
    except OSError as error:
        raise OneTrunkError(f"{mark}: cannot be written: {error.strerror}") from error


def start(server: Server, console: Console) -> None:
    """Start the server and show its progress."""
    with console.status("Starting Triton") as status:
        server.start()
        server.wait_ready(
            on_progress=lambda loaded, total: status.update(f"Starting Triton: {loaded} of {total} models loaded")
        )


def announce(server: Server, repository: Path, console: Console, as_json: bool) -> None:
    """Announce that the server is ready: to people on stderr, or with --json to a script on stdout.

    Args:
        server: The server.
        repository: The model repository that it serves.
        console: The console for people.
        as_json: Whether a script reads the announcement.
    """
    if as_json:
        ready = {
            "repository": str(repository),
            "grpc": server.grpc_url,
            "http": server.http_url,
            "metrics": server.metrics_url,
            "log": str(server.log_path),
            "front_log": str(server.front_log_path),
            "pid": server.pid,
            "front_pid": server.front_pid,
            "front_pids": server.front_pids,
            "tasks": {name: task.record() for name, task in server.tasks.items()},
        }
        click.echo(json.dumps(ready))
        return
    # Imported here: neither --help nor a script needs it.
    from onetrunk.client.readers import answers_of

    table = Table("task", "kind", "form", "answers", box=None, pad_edge=False)
    for name, task in sorted(server.tasks.items()):
        table.add_row(name, task.kind, task.form, escape(as_printed(answers_of(task), sys.stderr)))
    console.print(f"[green]Ready[/]: {len(server.tasks)} tasks of {repository}")
    console.print(table)
    url = "" if server.grpc_url == "127.0.0.1:8001" else f" --url {server.grpc_url}"
    for line in (
        f"gRPC {server.grpc_url}   HTTP {server.http_url}   metrics {server.metrics_url}",
        f"log  {server.log_path}",
        f'Ask it: ask-repo "It was a wonderful film."{url}   Stop it: Ctrl-C',
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
