"""Padded lengths. Requests batch together only when their shapes are equal, so texts are padded to a few lengths."""

from __future__ import annotations

from builder.errors import UserError

_SHORTEST = 16


def buckets_up_to(max_length: int, max_positions: int) -> tuple[int, ...]:
    """16, 32, 64 ... and at last ``max_length`` itself, in tokens.

    Raises:
        UserError: the trunk cannot read that many tokens, or there are too few for a text.
    """
    if not 3 <= max_length <= max_positions:
        raise UserError(f"--max-length {max_length}: this trunk reads 3 to {max_positions} tokens")
    buckets = []
    length = _SHORTEST
    while length < max_length:
        buckets.append(length)
        length *= 2
    return (*buckets, max_length)
