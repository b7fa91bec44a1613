"""The fold is exact: its state is the whole layer's, for every query."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.nn.encoder import mask_bias
from onetrunk.nn.fold import query_state
from onetrunk.nn.head import new_head
from onetrunk.protocol.head_json import Query

QUERIES = get_args(Query)


def make_head(trunk, query, **sizes):
    """A head in evaluation mode; a learned query's vector is one that has learned something."""
    head = new_head(trunk, **{"outputs": 2, "tap": 2, "layers": 1, **sizes}, query=query).eval()
    if head.pool is not None:
        torch.nn.init.normal_(head.pool, std=0.5)
    return head


@settings(max_examples=25, deadline=None)
@given(
    query=st.sampled_from(QUERIES),
    batch=st.integers(1, 5),
    tokens=st.integers(2, 40),
    layers=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_folded_head_equals_whole_head(tiny_trunk, query, batch, tokens, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    head = make_head(tiny_trunk, query, outputs=3, tap=1, layers=layers)
    state = torch.randn(batch, tokens, tiny_trunk.width, generator=generator)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(head(state, mask), head.forward_whole(state, mask), atol=2e-5, rtol=0)


@pytest.mark.parametrize("query", QUERIES)
def test_padding_changes_nothing(tiny_trunk, query):
    head = make_head(tiny_trunk, query)
    state = torch.randn(1, 6, tiny_trunk.width)
    padded = torch.cat([state, 100 * torch.randn(1, 10, tiny_trunk.width)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 10])
    with torch.no_grad():
        short = head(state, mask[:, :6])
        torch.testing.assert_close(head(padded, mask), short, atol=1e-5, rtol=0)
        torch.testing.assert_close(head.forward_whole(padded, mask), short, atol=1e-5, rtol=0)


def test_queries_by_the_book(tiny_trunk):
    """Against one text at a time, without padding: fold and whole layer alike take the query as it is given."""
    state, lengths = torch.randn(3, 7, tiny_trunk.width), [7, 4, 1]
    bias = mask_bias((torch.arange(7) < torch.tensor(lengths)[:, None]).long(), state)
    pool = torch.randn(tiny_trunk.width)
    for row, length in enumerate(lengths):
        text = state[row, :length]
        weights = (text @ pool).exp()
        expected = {"cls": text[0], "mean": text.mean(0), "learned": (weights[:, None] * text).sum(0) / weights.sum()}
        for query in QUERIES:
            found = query_state(query, state, bias, pool)[row]
            torch.testing.assert_close(found, expected[query], atol=1e-5, rtol=1e-4)


def test_learned_query_starts_as_the_mean_and_learns(tiny_trunk):
    torch.manual_seed(0)
    mean = new_head(tiny_trunk, outputs=2, tap=2, layers=1, query="mean").eval()
    learned = new_head(tiny_trunk, outputs=2, tap=2, layers=1, query="learned").eval()
    assert learned.pool.requires_grad
    assert set(learned.state_dict()) == {*mean.state_dict(), "pool"}
    learned.load_state_dict({**mean.state_dict(), "pool": learned.pool})
    state, mask = torch.randn(3, 7, tiny_trunk.width), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    assert torch.equal(learned(state, mask), mean(state, mask))
    learned(state, mask).pow(2).sum().backward()
    assert learned.pool.grad.abs().max() > 0


@pytest.mark.parametrize("query", QUERIES)
def test_fold_gives_the_same_gradients(tiny_trunk, query):
    """A head is trained folded, so the fold must teach its parameters what the whole layer would."""
    head = make_head(tiny_trunk, query)
    state, mask = torch.randn(3, 7, tiny_trunk.width), torch.ones(3, 7, dtype=torch.long)

    def gradients(run):
        head.zero_grad()
        run(state, mask).pow(2).sum().backward()
        return {name: value.grad.clone() for name, value in head.named_parameters() if value.grad is not None}

    folded, whole = gradients(head), gradients(head.forward_whole)
    assert ("pool" in whole) == (query == "learned")
    for name, gradient in whole.items():
        if name.endswith("key.bias"):
            # It drops out of the softmax: its gradient is zero but for rounding, and the fold does not touch it.
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
