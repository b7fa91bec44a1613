"""What families with rotary positions share: keys are turned token by token, so they cannot be moved to the query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_rotary(config: Any) -> None:
    """Refuse frequencies that depend on the length of a text, or scale the scores.

    Args:
        config: A configuration of `transformers`.

    Raises:
        ValueError: It has such frequencies.
    """
    found = config.rope_parameters or {}
    nested = [one for one in found.values() if isinstance(one, dict)]
    for one in nested or [found]:
        if one.get("rope_type", "default") != "default":
            raise ValueError(f"rope_type is {one['rope_type']!r:.40}; allowed is 'default'")


def rotary_scores(query: Tensor, keys: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return the scaled scores of a query at position 0, before the mask.

    Args:
        query: Not rotated, which is the same as rotated to position 0. *Shape:* (batch_size, heads, size)
        keys: Not rotated. There are as many heads of keys as of queries, or a divisor of it.
            *Shape:* (batch_size, tokens, key_heads * size)
        rotation: Cosines and sines of the tokens' positions. *Shape of each:* (1, tokens, size)

    Returns:
        *Shape:* (batch_size, heads, tokens)
    """
    heads, size = query.shape[1:]
    split = torch.unflatten(keys, -1, (-1, size)).transpose(1, 2)  # (batch, key heads, tokens, size)
    key_heads = split.shape[1]
    cos, sin = rotation
    first, second = split.chunk(2, dim=-1)
    turned = split * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
    # Neighbours share a head of keys.
    grouped = torch.unflatten(query, 1, (key_heads, heads // key_heads)) * size**-0.5
    return torch.matmul(grouped, turned.transpose(-1, -2)).flatten(1, 2)
