"""Batches: every text once, similar lengths together, decided by seed and epoch alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onetrunk.training.states import epoch_batches, plain_batches


@given(lengths=st.lists(st.integers(1, 128), min_size=1, max_size=200), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_text_comes_once(lengths, size, seed):
    for batches in (
        epoch_batches(np.array(lengths), size, seed=seed, epoch=0),
        plain_batches(np.array(lengths), size),
    ):
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(3, 128, 500)

    def order(seed, epoch):
        return [batch.tolist() for batch in epoch_batches(lengths, 16, seed=seed, epoch=epoch)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_batches_hold_texts_of_similar_length():
    lengths = np.random.default_rng(0).integers(3, 128, 4096)
    batches = epoch_batches(lengths, 32, seed=0, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()  # drawn blindly, it would be nearly twice as much
