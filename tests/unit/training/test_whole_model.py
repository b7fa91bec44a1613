"""The whole encoder, fine-tuned: what its reduced vocabulary changes (nothing), and what it must leave alone."""

import copy

import pytest
import torch

from onetrunk.nn.whole_model import new_whole_model
from onetrunk.tasks import Recipe
from onetrunk.training.evaluation import LabelledStates
from onetrunk.training.loop import fit
from onetrunk.training.states import TokenStates, tokenise
from tests.fixtures.tasks import mood_rows

ROWS = mood_rows(60, seed=1)


@pytest.fixture
def data(tiny_trunk):
    rows = tokenise(tiny_trunk, [row["sentence"] for row in ROWS], 32)
    targets = torch.tensor([("bad", "good").index(row["label"]) for row in ROWS])
    return LabelledStates(TokenStates(rows, tiny_trunk.pad_token_id), targets)


def train(trunk, task, data, vocabulary, **changes):
    """The model, and its losses and layers after every step."""
    torch.manual_seed(0)
    model = new_whole_model(trunk, outputs=2, vocabulary=vocabulary)
    steps = []

    def after_step(*_):
        steps.append(torch.cat([parameter.detach().flatten() for parameter in model.head.parameters()]))

    # With weight decay, embeddings of absent tokens would shrink. A clip that is never reached: it would sum the
    # squares of a gradient with more zeros in it, in another order.
    values = {"tap": 0, "layers": trunk.depth, "epochs": 2, "batch_size": 16, "weight_decay": 0.0, "clip": 1e9}
    recipe = Recipe(**{**values, "learning_rate": 1e-3, "max_length": 32, **changes})
    state = fit(model, task, recipe, data, data, progress=after_step)
    return model, state, steps


def words(model):
    return model.embeddings.word_embeddings.weight.detach()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_reduced_vocabulary_trains_bit_for_bit_as_the_whole_one(tiny_trunk, mood, data, dropout):
    vocabulary = data.states.vocabulary
    whole, whole_state, whole_steps = train(tiny_trunk, mood, data, None, dropout=dropout)
    reduced, reduced_state, reduced_steps = train(tiny_trunk, mood, data, vocabulary, dropout=dropout)

    assert len(words(reduced)) == len({*vocabulary.tolist(), tiny_trunk.pad_token_id}) < len(words(whole))
    assert len(whole_steps) == 8  # 60 texts in batches of 16, two epochs
    assert all(torch.equal(one, other) for one, other in zip(whole_steps, reduced_steps, strict=True))
    assert whole_state.losses == reduced_state.losses
    assert whole_state.scores == reduced_state.scores
    assert torch.equal(
        words(whole)[vocabulary], words(reduced)[reduced.embeddings.word_embeddings.row_of_token[vocabulary]]
    )


def test_embeddings_change_where_a_token_occurs_and_nowhere_else(tiny_trunk, mood, data):
    model, _, _ = train(tiny_trunk, mood, data, None)
    before = tiny_trunk.embeddings.word_embeddings.weight
    changed = (words(model) != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == data.states.vocabulary.tolist()
    positions = model.embeddings.position_embeddings.weight.detach()
    assert not torch.equal(positions[:3], tiny_trunk.embeddings.position_embeddings.weight[:3])


def test_trunk_stays_bit_for_bit_and_frozen(tiny_trunk, mood, data):
    before = {name: tensor.clone() for name, tensor in tiny_trunk.state_dict().items()}
    for vocabulary in (None, data.states.vocabulary):
        train(tiny_trunk, mood, data, vocabulary)
    after = tiny_trunk.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in tiny_trunk.parameters())


def test_untrained_it_answers_as_a_head_on_tap_0(tiny_trunk, data):
    torch.manual_seed(0)
    model = new_whole_model(tiny_trunk, outputs=2, vocabulary=data.states.vocabulary).eval()
    input_ids, type_ids, mask = data.states.batch(torch.arange(5).numpy())
    state = tiny_trunk.states(input_ids, type_ids, mask, [0])[0]
    torch.testing.assert_close(model(input_ids, type_ids, mask), model.head(state, mask))


def test_positions_stay_where_there_are_as_many_as_tokens(tiny_trunk, mood, data):
    trunk = copy.deepcopy(tiny_trunk)
    embeddings = trunk.embeddings
    positions, tokens = embeddings.position_embeddings, embeddings.word_embeddings
    assert positions.num_embeddings != tokens.num_embeddings
    more = torch.randn(tokens.num_embeddings, trunk.width)
    more[: positions.num_embeddings] = positions.weight[: tokens.num_embeddings]
    embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(more)
    reduced = new_whole_model(trunk, outputs=2, vocabulary=data.states.vocabulary)
    assert reduced.embeddings.position_embeddings.num_embeddings == tokens.num_embeddings
    assert reduced.embeddings.word_embeddings.num_embeddings < tokens.num_embeddings
