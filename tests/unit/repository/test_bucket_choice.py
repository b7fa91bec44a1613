"""The choice of buckets against every other choice, on small made-up mixes of lengths."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.repository.buckets import choose_buckets, padding_share, tokens

MAX_LENGTH = 14
mixes = st.dictionaries(st.integers(1, 20), st.integers(0, 50), max_size=8).map(Counter)
costs = st.sampled_from([tokens, lambda n: n + n * n, lambda n: -(-n // 4)])


def cost_of(lengths, buckets, cost):
    return sum(
        texts * cost(next(bucket for bucket in buckets if bucket >= min(length, buckets[-1])))
        for length, texts in lengths.items()
    )


def all_choices(max_length, most, step):
    inner = range(step, max_length, step)
    for count in range(most):
        for chosen in itertools.combinations(inner, count):
            yield (*chosen, max_length)


@settings(deadline=None)
@given(lengths=mixes, most=st.integers(1, 5), step=st.sampled_from([1, 2, 3, 4, 8]), cost=costs)
def test_no_other_choice_is_cheaper_nor_as_cheap_with_fewer_buckets(lengths, most, step, cost):
    chosen = choose_buckets(lengths, MAX_LENGTH, most, step, cost)
    assert list(chosen) == sorted(set(chosen))
    assert chosen[-1] == MAX_LENGTH
    assert len(chosen) <= most
    assert all(bucket % step == 0 for bucket in chosen[:-1])
    priced = [(cost_of(lengths, other, cost), len(other)) for other in all_choices(MAX_LENGTH, most, step)]
    assert (cost_of(lengths, chosen, cost), len(chosen)) == min(priced)


@given(lengths=mixes, most=st.integers(1, 5))
def test_order_of_the_counts_does_not_matter(lengths, most):
    turned = Counter(dict(reversed(lengths.items())))
    assert choose_buckets(turned, MAX_LENGTH, most) == choose_buckets(lengths, MAX_LENGTH, most)


@given(lengths=mixes, most=st.integers(1, 4))
def test_one_more_bucket_is_never_more_padding(lengths, most):
    shares = [padding_share(lengths, choose_buckets(lengths, MAX_LENGTH, count)) for count in (most, most + 1)]
    assert shares[1] <= shares[0] + 1e-12


@given(lengths=mixes)
def test_share_is_what_padding_every_text_comes_to(lengths):
    buckets = (4, 9, MAX_LENGTH)
    kept = padded = 0
    for length in lengths.elements():
        row = [1] * min(length, MAX_LENGTH)
        kept += len(row)
        padded += min(bucket for bucket in buckets if bucket >= len(row)) - len(row)
    assert padding_share(lengths, buckets) == pytest.approx(padded / (kept + padded) if kept else 0)


def test_each_length_its_own_bucket_leaves_no_padding():
    lengths = Counter({3: 5, 7: 1, 11: 2, MAX_LENGTH: 1})
    assert choose_buckets(lengths, MAX_LENGTH, 8) == (3, 7, 11, 14)
    assert padding_share(lengths, (3, 7, 11, 14)) == 0


def test_without_texts_there_is_the_last_bucket_only():
    assert choose_buckets(Counter(), 128, 8) == (128,)
    assert padding_share(Counter(), (128,)) == 0


def test_long_texts_count_for_more_where_attention_counts():
    lengths = Counter({10: 100, 20: 60, 90: 10, 100: 10})
    assert choose_buckets(lengths, 100, 3) == (10, 20, 100)
    assert choose_buckets(lengths, 100, 3, cost=lambda n: n**3) == (20, 90, 100)


def test_many_lengths_take_no_noticeable_time():
    lengths = Counter({length: 1 + length * 7919 % 1000 for length in range(3, 513)})
    chosen = choose_buckets(lengths, 512, 12)
    assert len(chosen) == 12
    assert padding_share(lengths, chosen) < padding_share(lengths, (16, 32, 64, 128, 256, 512))
