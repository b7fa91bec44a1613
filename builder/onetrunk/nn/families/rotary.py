"""What families with rotary positions share: keys are turned token by token, so they cannot be moved to the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onetrunk.nn.encoder import LayerContext, SharedParts, mask_bias, output_of, token_positions


@dataclass(frozen=True)
class RotaryContext(LayerContext):
    """Beside the mask, the rotation of every token's position.

    Attributes:
        rotation: Cosines and sines. *Shape of each:* (1, tokens, size)
    """

    rotation: tuple[Tensor, Tensor]


class RotaryShared(SharedParts):
    """The frequencies of the rotation, and a norm after the last layer if there is one."""

    def __init__(self, rotary: nn.Module, final_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.rotary, self.final_norm = rotary, final_norm

    def prepare(self, attention_mask: Tensor, like: Tensor, *, query_in_front: bool = False) -> RotaryContext:
        """See ``SharedParts.prepare``."""
        positions = token_positions(attention_mask, query_in_front=query_in_front)
        return RotaryContext(mask_bias(attention_mask, like), self.rotary(like, positions[None]))

    def close(self, state: Tensor) -> Tensor:
        """See ``SharedParts.close``."""
        return state if self.final_norm is None else self.final_norm(state)


def run_rotary_layer(layer: nn.Module, hidden_state: Tensor, context: RotaryContext) -> Tensor:
    """See ``Encoder.run_layer``: the layers of `transformers` that have one rotation for all."""
    return output_of(layer(hidden_state, attention_mask=context.mask_bias, position_embeddings=context.rotation))


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
