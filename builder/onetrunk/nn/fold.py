"""The exact fold: a head's last layer, computed for a single query.

Classification and regression read a single state of the last layer, so that layer needs one query, and its value
projection can be moved to the other side of the sum over tokens; so can its key projection, where keys do not depend on
positions. With hidden states X (tokens x width) and a query state c (see ``query_state``; X[0] for [CLS]), for each
attention head h of size d of a layer of BERT's form:

    q_h = W_q,h c + b_q,h          u_h = W_k,h^T q_h / sqrt(d)          a_h = softmax(X u_h + mask)
    o_h = W_v,h (X^T a_h) + b_v,h  then output projection, residual, LayerNorm and FFN for one state

The key bias adds the same number to every score and cancels in the softmax. Nothing is approximated: in exact
arithmetic the result is the state of the whole layer at c. The cost falls from about 12 tokens * width^2
multiplications to about 12 width^2 + 2 tokens * width * attention_heads.

How a query scores the tokens is up to the family (``LayerParts.scores``): docs/trunks.md has what it costs in each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onetrunk.nn.encoder import LayerParts
from onetrunk.protocol.head_json import Query


def query_state(query: Query, hidden_state: Tensor, mask_bias: Tensor, pool: Tensor | None = None) -> Tensor:
    """Return the state c that a head's last layer uses as its query and as its residual.

    - ``cls``: the state of the first token, [CLS].
    - ``mean``: the mean of the states of all tokens except padding.
    - ``learned``: their mean weighted by a learned vector p, ``softmax(X p + mask) X``. Before training p is zero, so
      that this is the mean.

    Args:
        query: Which of them.
        hidden_state: The state below the layer. *Shape:* (batch_size, tokens, width)
        mask_bias: ``LayerContext.mask_bias``. *Shape:* (batch_size, 1, 1, tokens)
        pool: The vector p, for ``learned``. *Shape:* (width,)

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


def folded_state(parts: LayerParts, query_state: Tensor, hidden_state: Tensor) -> Tensor:
    """Return the layer's state for one query, at the cost of a few vectors per text.

    Args:
        parts: The parts of the layer.
        query_state: c, the layer's one query and its residual. *Shape:* (batch_size, width)
        hidden_state: The state below the layer. *Shape:* (batch_size, tokens, width)

    Returns:
        *Shape:* (batch_size, width)
    """
    query, states = query_state, hidden_state
    if parts.norm is not None:
        query, states = parts.norm(query), parts.norm(states)
    scores = parts.scores(query, states)  # (batch, heads, tokens)
    attention = parts.dropout(torch.softmax(scores, dim=-1))
    summed = torch.matmul(attention, states).transpose(0, 1)  # (heads, batch, width)

    # Read from the layer, not from the state: an exporter sees plain numbers, and the reshaped weights are constants.
    heads, value_heads, size = parts.attention_heads, parts.value_heads, parts.head_size
    value_weight = parts.value.weight.view(value_heads, size, parts.width).transpose(1, 2)
    value_bias = None if parts.value.bias is None else parts.value.bias.view(value_heads, 1, size)
    if value_heads < heads:
        # The texts of neighbours that share a value head, in one batch.
        summed = summed.reshape(value_heads, -1, parts.width)
    context = torch.matmul(summed, value_weight)
    if value_bias is not None:
        context = context + value_bias
    if value_heads < heads:
        context = context.view(heads, -1, size)
    return parts.finish(context.transpose(0, 1).reshape(-1, heads * size), query_state)


def content_scores(query: nn.Linear, key: nn.Linear, heads: int, query_state: Tensor, states: Tensor) -> Tensor:
    """Return the scaled scores of layers whose keys do not depend on positions, before mask and bias.

    The key projection is moved to the query's side.

    Args:
        query: The query projection, width -> width, for all attention heads together.
        key: The key projection, width -> width.
        heads: The number of attention heads.
        query_state: *Shape:* (batch_size, width)
        states: *Shape:* (batch_size, tokens, width)

    Returns:
        *Shape:* (batch_size, heads, tokens)
    """
    width = query.in_features
    size = width // heads
    # One small matrix product for each attention head, batched: (heads, batch, size) @ (heads, size, width).
    queries = query(query_state).view(-1, heads, size).transpose(0, 1)
    key_weight = key.weight.view(heads, size, width)
    folded_query = torch.matmul(queries, key_weight).transpose(0, 1) * size**-0.5  # (batch, heads, width)
    return torch.matmul(folded_query, states.transpose(1, 2))
