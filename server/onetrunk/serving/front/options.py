"""The options of a front, which `serve-repo` and `serve-front` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.settings import MIB, Limits, ServerTls

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option(
        "--tls-cert",
        type=_FILE,
        envvar="ONETRUNK_TLS_CERT",
        help="Serve TLS with this certificate, in PEM, with its chain.",
    ),
    click.option("--tls-key", type=_FILE, envvar="ONETRUNK_TLS_KEY", help="The private key of --tls-cert, in PEM."),
    click.option(
        "--tls-client-ca",
        type=_FILE,
        envvar="ONETRUNK_TLS_CLIENT_CA",
        help="Ask clients for a certificate of this authority.",
    ),
    click.option("--max-body-mb", default=8, type=click.IntRange(1, 1024), help="MiB of one request, decompressed."),
    click.option("--max-texts", default=1024, type=click.IntRange(1), help="Rows of one request."),
    click.option("--max-text-kb", default=1024, type=click.IntRange(1), help="KiB of one text."),
    click.option("--max-in-flight", default=64, type=click.IntRange(1), help="Requests in Triton at a time."),
    click.option("--max-waiting", default=512, type=click.IntRange(0), help="Requests that wait; more are refused."),
)


def front_options(command: F) -> F:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_front_options(options: dict[str, Any]) -> tuple[Limits, ServerTls | None]:
    """Take the values of the options out of a command's options.

    Raises:
        UserError: The files for TLS do not fit together, or cannot be read.
    """
    limits = Limits(
        max_body_bytes=options.pop("max_body_mb") * MIB,
        max_texts=options.pop("max_texts"),
        max_text_bytes=options.pop("max_text_kb") * 1024,
        max_in_flight=options.pop("max_in_flight"),
        max_waiting=options.pop("max_waiting"),
    )
    cert, key, client_ca = (options.pop(name) for name in ("tls_cert", "tls_key", "tls_client_ca"))
    if cert is None and key is None and client_ca is None:
        return limits, None
    if cert is None or key is None:
        raise UserError("--tls-cert and --tls-key belong together: give both")
    return limits, ServerTls.read(cert, key, client_ca)
