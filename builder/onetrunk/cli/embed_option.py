"""``--embed``, which commands that build and that deploy have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class _Tap(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # newer releases of click have one
    """The number of a tap, or ``last``."""

    name = "tap"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or ``last``."""
        if value == "last" or isinstance(value, int):
            return value
        if not (value.isascii() and value.isdigit() and len(value) <= 4):
            self.fail(
                f"found {value!r:.60}: give the number of a tap, or nothing for the trunk's last layer", param, ctx
            )
        return int(value)


def embed_option(what: str) -> Callable[[Any], Any]:
    """Return the option, whose value is a tap, ``last`` if it is given without one, or None; and one for long texts.

    Args:
        what: What it does, for ``--help``.
    """
    tap = click.option(
        "--embed",
        type=_Tap(),
        metavar="[TAP]",
        is_flag=False,
        flag_value="last",
        help=f"{what} They are the mean state at TAP, of length 1. [default: none; without a TAP: the last layer]",
    )
    long_texts = click.option(
        "--embed-long-texts",
        type=click.Choice(["cut", "windows"]),
        help="What --embed reads of a text longer than the server's longest: its beginning, or all of it in windows, "
        "whose vectors are averaged. [default: cut]",
    )
    return lambda command: tap(long_texts(command))
