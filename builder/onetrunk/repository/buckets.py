"""Padded lengths. Requests batch together only when their shapes are equal, so texts are padded to a few lengths."""

from __future__ import annotations

from collections.abc import Sequence

from onetrunk.protocol.errors import UserError

_SHORTEST = 16
# A pair has three special tokens, and of each text there should be one at least.
_FEWEST = 5


def buckets_up_to(max_length: int, max_positions: int) -> tuple[int, ...]:
    """16, 32, 64 ... and at last ``max_length`` itself, in tokens.

    Raises:
        UserError: the trunk cannot read that many tokens, or there are too few for a text.
    """
    check_max_length(max_length, max_positions)
    buckets = []
    length = _SHORTEST
    while length < max_length:
        buckets.append(length)
        length *= 2
    return (*buckets, max_length)


def check_max_length(max_length: int, max_positions: int) -> None:
    """Raises UserError where the trunk cannot read that many tokens, or there are too few for a text."""
    if not _FEWEST <= max_length <= max_positions:
        raise UserError(f"--max-length {max_length}: this trunk reads {_FEWEST} to {max_positions} tokens")


def check_buckets(buckets: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Buckets as a user gave them.

    Raises:
        UserError: they do not rise, begin too low, or do not end at ``max_length``.
    """
    shown = ",".join(map(str, buckets))
    if list(buckets) != sorted(set(buckets)):
        raise UserError(f"--buckets {shown}: give them rising, as in 16,32,64,{max_length}")
    if not buckets or buckets[0] < _FEWEST:
        raise UserError(f"--buckets {shown}: the shortest that can hold a pair of texts has {_FEWEST} tokens")
    if buckets[-1] != max_length:
        raise UserError(
            f"--buckets {shown}: the last one has to be --max-length ({max_length}), so that every text fits: "
            f"end with {max_length}, or give --max-length {buckets[-1]}"
        )
    return tuple(buckets)
