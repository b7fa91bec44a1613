"""Texts that a student learns from beyond its own: of which tasks, how many, and which."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from onetrunk.protocol.errors import UserError
from onetrunk.training.distillation import _mask_token, masked, other_tasks, student_states
from onetrunk.training.runs import Distillation
from onetrunk.training.states import tokenise


@pytest.fixture
def uncached(mood, second, likeness, new_experiment):
    third = second.model_copy(update={"name": "third", "train": second.dev})
    return new_experiment(mood, second, likeness, third)


@pytest.fixture
def experiment(uncached):
    """An experiment whose states are in the cache, as in a search over all tasks."""
    for task in uncached.tasks:
        uncached.states(task, "train", [1, 2])
    return uncached


def parts(joined):
    """The rows drawn from each list of texts, by the number of texts in the list."""
    return {
        len(states.lengths): joined._row[joined._part == place].tolist() for place, states in enumerate(joined._parts)
    }


def test_only_tasks_of_the_same_form_lend_texts(experiment):
    assert other_tasks(experiment, "mood") == ["second", "third"]
    assert other_tasks(experiment, "likeness") == []


def test_own_texts_come_first_and_in_their_order(experiment, tiny_trunk):
    joined = student_states(experiment, "mood", tap=1, how=Distillation(teacher="", other_texts=0.3), seed=0)
    own = experiment.states("mood", "train", [1]).states[1].lengths
    assert joined.lengths[:200].tolist() == own.tolist()
    assert len(joined.lengths) == 260


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (0.1, 20), (0.5, 100), (3.0, 110)])
def test_others_rows_are_in_range_and_none_comes_twice(experiment, share, drawn):
    found = parts(student_states(experiment, "mood", tap=1, how=Distillation(teacher="", other_texts=share), seed=0))
    assert found.pop(200) == list(range(200))
    # 110 texts are all that the two others have.
    assert sum(len(rows) for rows in found.values()) == drawn
    for size, rows in found.items():
        assert len(set(rows)) == len(rows)
        assert all(0 <= row < size for row in rows)


def test_draw_depends_on_the_seed_alone(experiment):
    how = Distillation(teacher="", other_texts=0.1)
    first = parts(student_states(experiment, "mood", tap=1, how=how, seed=0))
    again = parts(student_states(experiment, "mood", tap=2, how=how, seed=0))
    other = parts(student_states(experiment, "mood", tap=1, how=how, seed=1))
    assert first == again
    assert first != other


def test_only_what_is_drawn_is_computed_where_nothing_is_cached(uncached):
    how = Distillation(teacher="", other_texts=0.1)
    drawn = student_states(uncached, "mood", tap=1, how=how, seed=0)
    others = parts(drawn)
    assert others.pop(200) == list(range(200))
    assert sum(others) == 20  # of the 110 texts of the two other tasks
    for task in ("second", "third"):
        uncached.states(task, "train", [1])
    whole = student_states(uncached, "mood", tap=1, how=how, seed=0)
    assert set(parts(whole)) == {200, 90, 20}
    np.testing.assert_array_equal(drawn.lengths, whole.lengths)
    for one, other in zip(drawn.batch(np.arange(190, 220)), whole.batch(np.arange(190, 220)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)  # stored as fp16


def test_task_without_others_has_its_own_texts(experiment):
    joined = student_states(experiment, "likeness", tap=1, how=Distillation(teacher="", other_texts=2.0), seed=0)
    assert parts(joined) == {75: list(range(75))}


def test_batch_is_what_its_parts_give(experiment):
    joined = student_states(experiment, "mood", tap=1, how=Distillation(teacher="", other_texts=0.5), seed=0)
    rows = np.array([3, 250, 201, 199])
    state, mask = joined.batch(rows)
    assert mask.sum(dim=1).tolist() == joined.lengths[rows].tolist()
    for place, row in enumerate(rows):
        part = joined._parts[joined._part[row]]
        own, _ = part.batch(joined._row[[row]])
        length = own.shape[1]
        assert (state[place, :length] == own[0]).all()
        assert (state[place, length:] == 0).all()


def test_masked_copies_follow_the_own_texts(experiment, tiny_trunk, mood):
    texts = experiment.examples("mood", "train").texts
    joined = student_states(experiment, "mood", tap=1, how=Distillation(teacher="", masked_texts=1.5), seed=4)
    assert len(joined.lengths) == 500
    expected = [*masked(texts, 4, "[MASK]"), *masked(texts, 5, "[MASK]")[:100]]
    assert joined.lengths[200:].tolist() == tokenise(tiny_trunk, expected, 32).lengths.tolist()


@pytest.mark.parametrize(("tokens", "mask"), [(["<s>", "<mask>"], "<mask>"), (["[CLS]", "[MASK]"], "[MASK]")])
def test_masked_copies_have_the_trunks_own_mask(tokens, mask):
    tokenizer = Tokenizer(WordLevel({"a": 0}))
    tokenizer.add_special_tokens(tokens)
    trunk = SimpleNamespace(tokenizer=lambda: tokenizer)
    assert _mask_token(SimpleNamespace(trunk=trunk)) == mask
    other = Tokenizer(WordLevel({"a": 0}))
    trunk.tokenizer = lambda: other
    with pytest.raises(UserError, match="the trunk's tokenizer has none of the tokens"):
        _mask_token(SimpleNamespace(trunk=trunk))


@given(texts=st.lists(st.text(alphabet="ab \t\u00e9", min_size=1), max_size=5), seed=st.integers(0, 99))
def test_masking_keeps_the_number_of_words_and_depends_on_the_seed_alone(texts, seed):
    hidden = masked(texts, seed, "[MASK]")
    assert hidden == masked(texts, seed, "[MASK]")
    for text, other in zip(texts, hidden, strict=True):
        pairs = list(zip(text.split(), other.split(), strict=True))
        assert all(now in (word, "[MASK]") for word, now in pairs)


def test_masking_hides_a_fifth_of_the_words_of_both_texts_of_a_pair():
    texts = [("one two three four five", "six seven eight")] * 400
    hidden = masked(texts, 0, "[MASK]")
    for side, words in ((0, 2000), (1, 1200)):
        assert 0.16 < sum(pair[side].count("[MASK]") for pair in hidden) / words < 0.24
    assert masked(texts, 0, "[MASK]") != masked(texts, 1, "[MASK]")
