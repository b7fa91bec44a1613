"""Texts as token ids: as the tokenizer returns them, cut where they are too long, padded on the right."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.errors import UserError
from onetrunk.training.states import ragged_index, texts_sha256, tokenise
from tests.fixtures.families import write_family_trunk
from tests.fixtures.tokenizers import BERT_ENDS

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


@pytest.fixture
def trunk_of_pairs(tmp_path):
    """A function that writes a trunk with so many token types, whose tokenizer has this template of a pair."""

    def make(types, template):
        folder = write_family_trunk(tmp_path / "trunk", "bert", type_vocab_size=types)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=template, special_tokens=BERT_ENDS
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        return load_trunk(folder)

    return make


@pytest.mark.parametrize(
    ("types", "template"),
    [(1, "[CLS] $A [SEP] $B:1 [SEP]:1"), (1, "[CLS] $A [SEP] $B [SEP]"), (2, "[CLS] $A $B:1 [SEP]:1")],
)
def test_pairs_are_read_by_types_or_by_a_token_between_them(trunk_of_pairs, types, template):
    trunk = trunk_of_pairs(types, template)
    rows = tokenise(trunk, [("film", "good music"), ("film good", "music")], 32)
    ids, type_ids, mask = rows.batch(np.array([0, 1]), trunk.pad_token_id)
    states = trunk.states(ids, type_ids, mask, [trunk.depth])[trunk.depth]
    assert not torch.allclose(states[0, 0], states[1, 0], atol=1e-3)


@pytest.mark.parametrize(("types", "template"), [(1, "[CLS] $A $B:1 [SEP]:1"), (2, "[CLS] $A $B [SEP]")])
def test_a_trunk_that_cannot_tell_the_texts_of_a_pair_apart_is_refused(trunk_of_pairs, types, template):
    trunk = trunk_of_pairs(types, template)
    with pytest.raises(UserError, match="this trunk cannot tell the texts of a pair apart") as refused:
        tokenise(trunk, [("good film", "bad film")], 32)
    assert "\n" not in str(refused.value)
    assert len(tokenise(trunk, ["good film"], 32).lengths) == 1


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
