"""The options of ``build-repo`` about buckets, the lengths to which texts are padded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from onetrunk.cli.data_options import split_names

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--buckets",
        metavar="auto|A,B,..",
        help="Lengths in tokens that texts are padded to, or auto: those that suit real texts. [default: 16,32,64,...]",
    ),
    click.option(
        "--texts",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Your traffic, as ask-repo --file reads it: auto chooses from it, other buckets are measured on it. "
        "[default for auto: the tasks' dev texts]",
    ),
    click.option("--bucket-count", type=click.IntRange(1), help="With auto: how many at most. [default: 10]"),
)


def bucket_options(command: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def requested_buckets(buckets: str | None, texts: Path | None, bucket_count: int | None) -> dict[str, Any]:
    """The options as the fields of a BucketRequest, which itself needs torch.

    Raises:
        UserError: The list of buckets is malformed, or an option has no effect with the others.
    """
    from onetrunk.protocol.errors import UserError

    lengths = _lengths(buckets)
    if bucket_count is not None and lengths != "auto":
        raise UserError("--bucket-count has an effect with --buckets auto only: give that too, or leave it out")
    given = {"lengths": lengths, "texts": texts, "most": bucket_count}
    return {name: value for name, value in given.items() if value is not None}


def _lengths(buckets: str | None) -> tuple[int, ...] | Literal["auto"] | None:
    from onetrunk.protocol.errors import UserError

    if buckets is None:
        return None
    if buckets.strip() == "auto":
        return "auto"
    parts = split_names(buckets)
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"--buckets {buckets}: give auto, or lengths in tokens with commas, as in 16,32,64,128")
    return tuple(int(part) for part in parts)
