"""The options of a front, which `serve-repo` and `serve-front` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from onetrunk.protocol.api_key import api_key_file_option, read_api_keys
from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.settings import MIB, Limits, Sampling, ServerTls, Tracing

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
    api_key_file_option("Answer only clients that send a key of this file, one a line; mode 0600."),
    click.option("--max-body-mb", default=8, type=click.IntRange(1, 1024), help="MiB of one request, decompressed."),
    click.option("--max-texts", default=1024, type=click.IntRange(1), help="Rows of one request."),
    click.option("--max-text-kb", default=128, type=click.IntRange(1), help="KiB of one text."),
    click.option("--max-in-flight", default=64, type=click.IntRange(1), help="Requests in Triton at a time."),
    click.option(
        "--trace-url",
        metavar="URL",
        help="Send traces to this OTLP endpoint over HTTP, such as http://127.0.0.1:4318/v1/traces.",
    ),
    click.option(
        "--trace-share",
        default=0.01,
        type=click.FloatRange(0, 1),
        help="Share of the requests without a traceparent of their own that are traced.",
    ),
    click.option(
        "--sample",
        type=_FILE,
        show_default=False,
        help="Keep a random sample of the texts that are asked, with their answers, in this file, for labelling. Texts "
        "may be private: by default none is kept.",
    ),
    click.option(
        "--sample-size", default=1000, type=click.IntRange(1, 100_000), help="Texts of each task in --sample."
    ),
    click.option("--max-waiting", default=512, type=click.IntRange(0), help="Requests that wait; more are refused."),
    click.option(
        "--max-connection-age",
        default=0,
        type=click.FloatRange(0),
        help="Seconds after which a client of gRPC has to connect anew, to find new servers; 0 for never.",
    ),
)


def front_options(command: F) -> F:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class FrontOptions:
    """The values of the options.

    Attributes:
        limits: What the front accepts.
        tls: Its certificate, or None.
        tracing: Where traces go, or None.
        sample: Where texts are kept for labelling, or None.
        api_keys: The keys of which every client needs one; empty if none is needed.
    """

    limits: Limits
    tls: ServerTls | None
    tracing: Tracing | None
    sample: Sampling | None
    api_keys: tuple[str, ...]


def take_front_options(options: dict[str, Any]) -> FrontOptions:
    """Take the values of the options out of a command's options.

    Raises:
        UserError: The files for TLS do not fit together, or a file cannot be read or used; the endpoint for traces is
            no URL.
    """
    path, size = options.pop("sample"), options.pop("sample_size")
    sample = Sampling(path=path, size=size) if path is not None else None
    key_file: Path | None = options.pop("api_key_file")
    api_keys = read_api_keys(key_file) if key_file is not None else ()
    limits = Limits(
        max_body_bytes=options.pop("max_body_mb") * MIB,
        max_texts=options.pop("max_texts"),
        max_text_bytes=options.pop("max_text_kb") * 1024,
        max_in_flight=options.pop("max_in_flight"),
        max_waiting=options.pop("max_waiting"),
        max_connection_age_s=options.pop("max_connection_age"),
    )
    url, share = options.pop("trace_url"), options.pop("trace_share")
    try:
        tracing = Tracing(url=url, share=share) if url is not None else None
    except ValidationError:
        raise UserError(f"--trace-url {url}: not a URL such as http://127.0.0.1:4318/v1/traces") from None
    cert, key, client_ca = (options.pop(name) for name in ("tls_cert", "tls_key", "tls_client_ca"))
    if cert is None and key is None and client_ca is None:
        return FrontOptions(limits, None, tracing, sample, api_keys)
    if cert is None or key is None:
        raise UserError("--tls-cert and --tls-key belong together: give both")
    return FrontOptions(limits, ServerTls.read(cert, key, client_ca), tracing, sample, api_keys)
