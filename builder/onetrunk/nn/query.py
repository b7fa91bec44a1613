"""The query of a head's last layer: the one state, out of a text's, that the layer is computed for."""

from __future__ import annotations

import torch
from torch import Tensor

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
