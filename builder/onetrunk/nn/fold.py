"""The exact [CLS] fold: a head's last layer, computed for one query only.

Classification and regression read only one state of the last layer, so that layer needs one query, and its key and
value projections can be moved to the other side of the sum over tokens. With hidden states X (tokens x width), and a
query state c, which is X[0] for [CLS] (onetrunk.nn.query has the others), per attention head h of size d:

    q_h = W_q,h c + b_q,h          u_h = W_k,h^T q_h / sqrt(d)          a_h = softmax(X u_h + mask)
    o_h = W_v,h (X^T a_h) + b_v,h  then output projection, residual, LayerNorm and FFN for one state

The key bias adds the same number to every score and drops out of the softmax. Nothing is approximated: in exact
arithmetic the result is the whole layer's state at c. The price falls from about 12 tokens * width^2
multiplications to about 12 width^2 + 2 tokens * width * attention_heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onetrunk.nn.encoder import LayerParts


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
