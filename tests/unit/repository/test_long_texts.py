"""Lengths, batches and memory where texts are long."""

import itertools
import re

import pytest

from onetrunk.export import batches
from onetrunk.protocol.errors import UserError
from onetrunk.repository.buckets import batch_note, buckets_up_to, check_max_length, rows_of_batch


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (16, (16,)),
        (100, (16, 32, 64, 100)),
        (512, (16, 32, 64, 128, 256, 512)),
        (1024, (16, 32, 64, 128, 256, 512, 768, 1024)),
        (8192, (16, 32, 64, 128, 256, 512, 768, 1152, 1728, 2624, 3968, 5952, 8192)),
    ],
)
def test_buckets_double_up_to_512_and_then_grow_by_half(max_length, expected):
    assert buckets_up_to(max_length, 8192) == expected


def test_no_long_text_is_padded_by_more_than_about_half():
    lengths = buckets_up_to(100_000, 131_072)
    assert all(longer <= 1.5 * shorter + 64 for shorter, longer in itertools.pairwise(lengths) if shorter >= 512)


@pytest.mark.parametrize(
    ("max_length", "max_tokens", "rows"),
    [
        (128, None, 32), (512, None, 32), (513, None, 31), (1024, None, 16), (8192, None, 2), (20_000, None, 1),
        (8192, 8192, 1), (8192, 100_000, 12), (128, 1024, 8), (16, 10**9, 32),
    ],
)  # fmt: skip
def test_a_batch_has_as_many_texts_as_its_tokens_allow(max_length, max_tokens, rows):
    assert rows_of_batch(max_length, max_tokens) == rows


def test_a_batch_in_which_no_text_fits_is_refused():
    with pytest.raises(UserError, match=r"--max-batch-tokens 4096: one text may have 8192 .*give 8192 or more"):
        rows_of_batch(8192, 4096)


def test_why_a_batch_is_small_is_told_in_one_line():
    assert batch_note(512, 32) is None
    note = batch_note(8192, 2)
    assert note.startswith("batches have at most 2 texts, not 32")
    # 32 texts, 8192 x 8192 scores of four bytes
    assert float(re.search(r"([\d.]+) GB", note)[1]) == pytest.approx(32 * 8192**2 * 4 / 1e9, abs=0.05)
    assert "\n" not in note


def test_the_shortest_length_holds_a_pair_with_the_trunks_separators():
    check_max_length(5, 512, least=5)
    with pytest.raises(UserError, match="--max-length 5: this trunk reads 6 to 512 tokens"):
        check_max_length(5, 512, least=6)


def test_checks_run_long_texts_in_small_batches(tiny_trunk, monkeypatch):
    texts = ["film", *["good film " * 20] * 7, *["a red light"] * 9]
    usual = list(batches.padded_batches(tiny_trunk, texts, (8, 64)))
    assert [array["input_ids"].shape for _, array in usual] == [(16, 64), (1, 64)]
    monkeypatch.setattr(batches, "_BATCH_TOKENS", 128)
    small = list(batches.padded_batches(tiny_trunk, texts, (8, 64)))
    assert sorted(itertools.chain.from_iterable(rows.tolist() for rows, _ in small)) == list(range(17))
    assert max(array["input_ids"].size for _, array in small) <= 128
    shapes = [array["input_ids"].shape for array in batches.parity_batches(tiny_trunk, (8, 64))]
    assert shapes == [(1, 8), (4, 8), (1, 64), (2, 64)]
