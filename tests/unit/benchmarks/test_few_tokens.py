"""A head of a few tokens is the whole head where all tokens are kept."""

from __future__ import annotations

import pytest
import torch

from benchmarks.few_tokens import FewTokensHead
from onetrunk.nn.head import new_head
from onetrunk.protocol.errors import UserError


def test_with_all_tokens_it_answers_as_the_whole_head_and_with_few_it_does_not(tiny_trunk):
    torch.manual_seed(0)
    head = new_head(tiny_trunk, outputs=2, tap=1, layers=3).eval()
    state, mask = torch.randn(4, 9, tiny_trunk.width), torch.ones(4, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    with torch.no_grad():
        whole = head(state, mask)
        assert torch.allclose(FewTokensHead.of(head, 64)(state, mask), whole, atol=1e-5)
        assert not torch.allclose(FewTokensHead.of(head, 3)(state, mask), whole, atol=1e-3)
        changed = state.clone()
        changed[1, 5:] += 1
        few = FewTokensHead.of(head, 7)
        assert torch.allclose(few(changed, mask)[1], few(state, mask)[1], atol=1e-5), "padding is no token"


def test_a_head_of_one_layer_has_no_layer_to_save(tiny_trunk):
    with pytest.raises(UserError, match="has two layers or more"):
        FewTokensHead.of(new_head(tiny_trunk, outputs=2, tap=1, layers=1), 8)
