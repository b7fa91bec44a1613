"""Texts as token ids: as the tokenizer returns them, cut where they are too long, padded on the right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrunk.protocol.errors import UserError
from onetrunk.training.states import ragged_index, texts_sha256, tokenise

TEXTS = ["the film was very good", "bad", "who plays blue music ? " * 20]


def test_rows_are_the_tokenizers_own(tiny_trunk):
    rows = tokenise(tiny_trunk, TEXTS, 32)
    tokenizer = tiny_trunk.tokenizer()
    tokenizer.enable_truncation(32)
    encodings = [tokenizer.encode(text) for text in TEXTS]
    assert rows.lengths.tolist() == [len(encoding.ids) for encoding in encodings]
    assert rows.ids.tolist() == [token for encoding in encodings for token in encoding.ids]
    assert rows.cut == 1


def test_batch_is_padded_on_the_right(tiny_trunk):
    pairs = [("the film", "was very good"), ("bad", "no")]
    input_ids, type_ids, mask = tokenise(tiny_trunk, pairs, 32).batch(np.array([1, 0]), pad_token_id=7)
    encodings = [tiny_trunk.tokenizer().encode(*pairs[row]) for row in (1, 0)]
    for place, encoding in enumerate(encodings):
        length = len(encoding.ids)
        assert input_ids[place].tolist() == encoding.ids + [7] * (8 - length)
        assert type_ids[place].tolist() == encoding.type_ids + [0] * (8 - length)
        assert mask[place].tolist() == [1] * length + [0] * (8 - length)


def test_longer_text_of_a_pair_is_cut_first(tiny_trunk):
    rows = tokenise(tiny_trunk, [("good film", "bad " * 50)], 12)
    tokenizer = tiny_trunk.tokenizer()
    assert rows.ids[:4].tolist() == tokenizer.encode("good film").ids
    assert len(rows.ids) == 12


@pytest.mark.parametrize("max_length", [2, 65])
def test_length_that_the_trunk_cannot_read_is_refused(tiny_trunk, max_length):
    with pytest.raises(UserError, match=f"max_length {max_length}: this trunk reads 3 to 64 tokens"):
        tokenise(tiny_trunk, TEXTS, max_length)


def test_length_without_room_for_a_pair_is_refused(tiny_trunk):
    """The library does not cut at all where not even the special tokens fit."""
    with pytest.raises(UserError, match="max_length 4: this trunk reads 5 to 64 tokens"):
        tokenise(tiny_trunk, [("good film", "bad film")], 4)
    assert tokenise(tiny_trunk, [("good film", "bad film")], 5).lengths.tolist() == [5]


@given(lengths=st.lists(st.integers(1, 9), min_size=1))
def test_ragged_index_points_at_every_token_once(lengths):
    sizes = np.array(lengths)
    index, mask = ragged_index(np.cumsum(sizes) - sizes, sizes)
    assert index[mask].tolist() == list(range(sum(lengths)))
    assert mask.sum(axis=1).tolist() == lengths
    assert index.max() < sum(lengths)


def test_hash_tells_lists_of_texts_apart():
    lists = [["ab"], ["a", "b"], ["b", "a"], [("a", "b")], [("ab", "")], ["a1,1:b"], []]
    assert len({texts_sha256(texts) for texts in lists}) == len(lists)
