"""Padded lengths. Requests batch together only when their shapes are equal, so texts are padded to a few lengths."""

from __future__ import annotations

from builder.errors import UserError

_SHORTEST = 16
# A pair has three special tokens, and of each text there should be one at least.
_FEWEST = 5


def buckets_up_to(max_length: int, max_positions: int) -> tuple[int, ...]:
    """16, 32, 64 ... and at last ``max_length`` itself, in tokens.

    Raises:
        UserError: the trunk cannot read that many tokens, or there are too few for a text.
    """
    if not _FEWEST <= max_length <= max_positions:
        raise UserError(f"--max-length {max_length}: this trunk reads {_FEWEST} to {max_positions} tokens")
    buckets = []
    length = _SHORTEST
    while length < max_length:
        buckets.append(length)
        length *= 2
    return (*buckets, max_length)
