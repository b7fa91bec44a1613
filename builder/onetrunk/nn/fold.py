"""The exact fold: a head's last layer, computed for a single query.

Classification and regression read a single state of the last layer, so that layer needs one query, and its key and
value projections can be moved to the other side of the sum over tokens. With hidden states X (tokens x width) and a
query state c (see ``query_state``; X[0] for [CLS]), for each attention head h of size d:

    q_h = W_q,h c + b_q,h          u_h = W_k,h^T q_h / sqrt(d)          a_h = softmax(X u_h + mask)
    o_h = W_v,h (X^T a_h) + b_v,h  then output projection, residual, LayerNorm and FFN for one state

The key bias adds the same number to every score and cancels in the softmax. Nothing is approximated: in exact
arithmetic the result is the state of the whole layer at c. The cost falls from about 12 tokens * width^2
multiplications to about 12 width^2 + 2 tokens * width * attention_heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        mask_bias: The bias that the layer adds to its attention scores. *Shape:* (batch_size, 1, 1, tokens)
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


def folded_state(parts: LayerParts, query_state: Tensor, hidden_state: Tensor, mask_bias: Tensor) -> Tensor:
    """Return the layer's state for one query, at the cost of a few vectors per text.

    Args:
        parts: The parts of the layer.
        query_state: c, the layer's one query and its residual. *Shape:* (batch_size, width)
        hidden_state: The state below the layer. *Shape:* (batch_size, tokens, width)
        mask_bias: The bias that is added to the attention scores. *Shape:* (batch_size, 1, 1, tokens)

    Returns:
        *Shape:* (batch_size, width)
    """
    # Read from the layer, not from the state: an exporter sees plain numbers, and the reshaped weights are constants.
    heads, width = parts.attention_heads, parts.query.in_features
    size = width // heads

    # One small matrix product for each attention head, batched: (heads, batch, size) @ (heads, size, width).
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
