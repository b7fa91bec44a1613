"""The query of a head's last layer: the one state, out of a text's, that the layer is computed for."""

from __future__ import annotations

import torch
from torch import Tensor

from onetrunk.nn.encoder import LayerParts
from onetrunk.protocol.head_json import Query


def query_state(query: Query, hidden_state: Tensor, mask_bias: Tensor, pool: Tensor | None = None) -> Tensor:
    """The state c that takes the place of [CLS] in a head's last layer, as its query and as its residual.

    - ``cls``: the state of the first token.
    - ``mean``: the mean of the states of all tokens but padding.
    - ``learned``: their mean weighted by one learned vector p, ``softmax(X p + mask) X``. Where p is nought, as it is
      before training, that is the mean.

    Args:
        query: which.
        hidden_state: the state below the layer. *Shape:* (batch_size, tokens, width)
        mask_bias: as the layer adds it to its scores. *Shape:* (batch_size, 1, 1, tokens)
        pool: the vector p, for ``learned``. *Shape:* (width,)

    Returns:
        *Shape:* (batch_size, width)
    """
    if query == "cls":
        return hidden_state[:, 0]
    scores = mask_bias[:, 0]  # (batch, 1, tokens)
    if query == "learned":
        assert pool is not None, "a learned query has a vector"
        scores = scores + torch.matmul(hidden_state, pool)[:, None]
    return torch.matmul(torch.softmax(scores, dim=-1), hidden_state)[:, 0]


def folded_state(parts: LayerParts, query_state: Tensor, hidden_state: Tensor, mask_bias: Tensor) -> Tensor:
    """The layer's state for one query, at the price of a few vectors a text.

    Args:
        parts: the layer, taken apart.
        query_state: c, the layer's one query and its residual. *Shape:* (batch_size, width)
        hidden_state: the state below the layer. *Shape:* (batch_size, tokens, width)
        mask_bias: added to the scores. *Shape:* (batch_size, 1, 1, tokens)

    Returns:
        *Shape:* (batch_size, width)
    """
    # Of the layer, not of the state: so they are plain numbers to an exporter, and the reshaped weights constants.
    heads, width = parts.attention_heads, parts.query.in_features
    size = width // heads

    # One small matrix product a head, batched over heads: (heads, batch, size) @ (heads, size, width).
    query = parts.query(query_state).view(-1, heads, size).transpose(0, 1)
    key_weight = parts.key.weight.view(heads, size, width)
    folded_query = torch.matmul(query, key_weight).transpose(0, 1) * size**-0.5  # (batch, heads, width)

    scores = torch.matmul(folded_query, hidden_state.transpose(1, 2)) + mask_bias[:, 0]  # (batch, heads, tokens)
    attention = parts.dropout(torch.softmax(scores, dim=-1))
    summed = torch.matmul(attention, hidden_state).transpose(0, 1)  # (heads, batch, width)

    value_weight = parts.value.weight.view(heads, size, width).transpose(1, 2)
    value_bias = parts.value.bias.view(heads, 1, size)
    context = (torch.matmul(summed, value_weight) + value_bias).transpose(0, 1).reshape(-1, width)
    return parts.finish(context, query_state)
