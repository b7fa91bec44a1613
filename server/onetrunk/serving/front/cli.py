"""The command `serve-front`, for a Triton that something else starts, such as docker-compose.yml."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import SecretStr

from onetrunk.protocol.address import join_address
from onetrunk.protocol.admin_key import admin_key_file_option, read_admin_key
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import ServerError, UserError
from onetrunk.serving.front.options import front_options, take_front_options
from onetrunk.serving.front.settings import GRPC_PORT, GRPC_SOCKET, HTTP_SOCKET, METRICS_SOCKET

if TYPE_CHECKING:
    from onetrunk.serving.front.settings import FrontSettings, TritonAddress

EPILOG = f"""\b
Example:
  tritonserver --grpc-address=unix:/run/triton/{GRPC_SOCKET} --grpc-port={GRPC_PORT} \\
               --http-address=unix:/run/triton/{HTTP_SOCKET} \\
               --metrics-address=unix:/run/triton/{METRICS_SOCKET} ...
  serve-front /run/triton --host 0.0.0.0

\b
The folder must be closed to other users (mode 0700), since whoever can enter it can
change the server. serve-repo starts both by itself.

\b
Exit codes: 0 stopped, 1 a port is in use, 2 the input was wrong.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("sockets", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address or name to listen on.")
@click.option("--http-port", default=8000, type=click.IntRange(1, 65535), help="For HTTP.")
@click.option("--grpc-port", default=8001, type=click.IntRange(1, 65535), help="Where ask-repo asks.")
@click.option("--metrics-port", default=8002, type=click.IntRange(1, 65535), help="For Prometheus.")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    show_default=False,
    help="The repository that is served: a Triton that starts follows its files, and the page shows its deployments.",
)
@front_options
@click.option("--verbose", is_flag=True, help="Log every request.")
@admin_key_file_option
def serve_front(sockets: Path, host: str, admin_key_file: Path | None, **options: Any) -> None:
    """Serve a Triton whose sockets are in the folder SOCKETS, until SIGTERM.

    The front passes protocol v2 on, over gRPC and HTTP. It keeps cancelled requests, bodies without bounds, and
    changes by anybody without the admin key from Triton. Triton may come later, and may be restarted.
    """
    import uvloop

    from onetrunk.serving.command import resolve_host
    from onetrunk.serving.front.observer import log_json_lines
    from onetrunk.serving.front.sample import check_sample
    from onetrunk.serving.front.settings import FrontSettings, TritonAddress

    log_json_lines(options["verbose"])
    with errors_end_command("serve-front"):
        check_folder(sockets)
        key = read_admin_key(admin_key_file)
        front = take_front_options(options)
        settings = FrontSettings(
            host=resolve_host(host),
            admin_key=SecretStr(key) if key else None,
            api_keys=tuple(map(SecretStr, front.api_keys)),
            limits=front.limits,
            tls=front.tls,
            tracing=front.tracing,
            sample=front.sample,
            **options,
        )
        if settings.sample is not None:
            check_sample(settings.sample.path)
            click.echo(settings.sample.notice(), err=True)
        try:
            uvloop.run(run_until_told(settings, TritonAddress(folder=sockets.absolute())))
        except OSError as error:
            raise ServerError(error.strerror or str(error)) from None


def check_folder(folder: Path) -> None:
    """Check that only this user, or root, can enter the folder of Triton's sockets.

    Raises:
        UserError: It is no folder, or others can.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the one in which Triton's sockets are, or will be")
    found = folder.stat()
    if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise UserError(
            f"{folder} is open to others (mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid}), and whoever "
            f"enters it can change the server: chmod 0700 {folder}, as the user of this process"
        )


async def run_until_told(settings: FrontSettings, address: TritonAddress) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: The front's settings.
        address: Where Triton listens, or will.

    Raises:
        OSError: A port is in use.
    """
    from onetrunk.serving.front.process import Front
    from onetrunk.serving.front.triton import Triton

    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    front = Front(settings, Triton(address))
    await front.open()
    doors = (join_address(settings.host, port) for port in (settings.grpc_port, settings.http_port))
    click.echo("front: gRPC {}   HTTP {}".format(*doors), err=True)
    await told.wait()
    await front.close()
