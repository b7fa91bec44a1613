"""The fold is exact: its [CLS] state is the whole layer's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.model.head import new_head


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 5), tokens=st.integers(2, 40), layers=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_folded_head_equals_whole_head(tiny_trunk, batch, tokens, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    head = new_head(tiny_trunk, outputs=3, tap=1, layers=layers).eval()
    state = torch.randn(batch, tokens, tiny_trunk.width, generator=generator)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(head(state, mask), head.forward_whole(state, mask), atol=2e-5, rtol=0)


def test_padding_changes_nothing(tiny_trunk):
    head = new_head(tiny_trunk, outputs=2, tap=2, layers=1).eval()
    state = torch.randn(1, 6, tiny_trunk.width)
    padded = torch.cat([state, 100 * torch.randn(1, 10, tiny_trunk.width)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 10])
    with torch.no_grad():
        torch.testing.assert_close(head(padded, mask), head(state, mask[:, :6]), atol=1e-5, rtol=0)


def test_fold_gives_the_same_gradients(tiny_trunk):
    """A head is trained folded, so the fold must teach its parameters what the whole layer would."""
    head = new_head(tiny_trunk, outputs=2, tap=2, layers=1).eval()
    state, mask = torch.randn(3, 7, tiny_trunk.width), torch.ones(3, 7, dtype=torch.long)

    def gradients(run):
        head.zero_grad()
        run(state, mask).pow(2).sum().backward()
        return {name: value.grad.clone() for name, value in head.named_parameters() if value.grad is not None}

    folded, whole = gradients(head), gradients(head.forward_whole)
    for name, gradient in whole.items():
        if name.endswith("key.bias"):
            # It drops out of the softmax: its gradient is nought but for rounding, and the fold does not touch it.
            assert gradient.abs().max() < 1e-3
        else:
            torch.testing.assert_close(folded[name], gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("tap", "layers"), [(0, 4), (3, 1)])
def test_head_starts_from_the_layers_above_its_tap(tiny_trunk, tap, layers):
    head = new_head(tiny_trunk, outputs=2, tap=tap, layers=layers)
    for own, source in zip(head.layers, tiny_trunk.layers[tap : tap + layers], strict=True):
        for (name, value), (_, original) in zip(own.named_parameters(), source.named_parameters(), strict=True):
            assert torch.equal(value, original), name
            assert value.data_ptr() != original.data_ptr(), f"{name} is shared with the trunk"
            assert value.requires_grad
