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
    """Return the option, whose value is a tap, ``last`` if it is given without one, or None.

    Args:
        what: What it does, for ``--help``.
    """
    return click.option(
        "--embed",
        type=_Tap(),
        metavar="[TAP]",
        is_flag=False,
        flag_value="last",
        help=f"{what} They are the mean state at TAP, of length 1. [default: none; without a TAP: the last layer]",
    )
