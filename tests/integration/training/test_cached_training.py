"""Training on cached states is training on states computed anew at every step: equal bit for bit, step by step."""

import numpy as np
import pytest
import torch

import onetrunk.training.cache as cache_module
from onetrunk.nn.head import new_head
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.evaluation import LabelledStates
from onetrunk.training.loop import fit
from onetrunk.training.objective import DistilObjective, LabelObjective
from onetrunk.training.states import JoinedStates, tokenise
from tests.fixtures.tasks import mood_rows

TAP = 1
TRAIN, OTHER, DEV = (mood_rows(count, seed) for count, seed in ((100, 1), (60, 5), (30, 2)))


class LiveStates:
    """The trunk, run anew for every text of every batch, and rounded as the cache rounds."""

    def __init__(self, trunk, texts):
        self._trunk = trunk
        self._rows = tokenise(trunk, texts, 32)
        self.lengths = self._rows.lengths
        self.runs = 0

    def batch(self, rows):
        state = torch.zeros(len(rows), int(self.lengths[rows].max()), self._trunk.width)
        mask = torch.zeros(state.shape[:2], dtype=torch.long)
        for place, row in enumerate(rows):
            inputs = self._rows.batch(np.array([row]), self._trunk.pad_token_id)
            own = self._trunk.states(*inputs, [TAP])[TAP][0].half().float()
            state[place, : len(own)], mask[place, : len(own)] = own, 1
            self.runs += 1
        return state, mask


def texts(rows):
    return [row["sentence"] for row in rows]


def targets(rows):
    return torch.tensor([("bad", "good").index(row["label"]) for row in rows])


@pytest.fixture
def cached(tiny_trunk, tmp_path, monkeypatch):
    """A function that returns the cached states of texts."""
    # One text a batch, as LiveStates has it: in a batch of another shape, sums are rounded otherwise.
    monkeypatch.setattr(cache_module, "_BATCH_TOKENS", {"cpu": 1})
    cache = StateCache(tmp_path, tiny_trunk, ComputeConfig("cpu", "fp32"))
    return lambda rows: cache.states(texts(rows), [TAP], max_length=32).states[TAP]


def steps_of(trunk, task, layers, train, dev, objective):
    """Losses and all weights after every step, and the state at the end."""
    torch.manual_seed(0)
    head = new_head(trunk, outputs=2, tap=TAP, layers=layers)
    losses, weights = [], []

    def recorded(raw, rows):
        loss = objective(raw, rows)
        losses.append(loss.item())
        return loss

    def after_step(*_):
        weights.append(torch.cat([parameter.detach().flatten() for parameter in head.parameters()]))

    recipe = task.recipe.model_copy(update={"layers": layers, "epochs": 2})
    labelled = LabelledStates(train, targets(TRAIN)), LabelledStates(dev, targets(DEV))
    state = fit(head, task, recipe, *labelled, objective=recorded, progress=after_step)
    return losses, weights, state


def assert_equal(one, other, steps):
    assert len(one[0]) == len(one[1]) == steps
    assert one[0] == other[0]
    assert all(torch.equal(weights, others) for weights, others in zip(one[1], other[1], strict=True))
    assert one[2].scores == other[2].scores
    assert not torch.equal(one[1][0], one[1][-1])


@pytest.mark.parametrize("layers", [1, 3])
def test_head_on_the_labels(tiny_trunk, mood, cached, layers):
    live = LiveStates(tiny_trunk, texts(TRAIN))
    objective = LabelObjective(get_kind(mood.kind), targets(TRAIN))
    of_cache = steps_of(tiny_trunk, mood, layers, cached(TRAIN), cached(DEV), objective)
    anew = steps_of(tiny_trunk, mood, layers, live, LiveStates(tiny_trunk, texts(DEV)), objective)
    assert live.runs == 2 * len(TRAIN)
    assert_equal(of_cache, anew, steps=2 * 7)  # 100 texts in batches of 16, two epochs


@pytest.mark.parametrize("layers", [1, 2])
def test_student_on_joined_texts(tiny_trunk, mood, cached, layers):
    drawn = np.array([41, 3, 59, 17])
    joined = JoinedStates([(cached(TRAIN), np.arange(len(TRAIN))), (cached(OTHER), drawn)])
    rows = [*TRAIN, *(OTHER[row] for row in drawn)]
    teacher = torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(0))
    objective = DistilObjective(LabelObjective(get_kind(mood.kind), targets(TRAIN)), teacher, 2.0)
    live = LiveStates(tiny_trunk, texts(rows))
    assert joined.lengths.tolist() == live.lengths.tolist()
    of_cache = steps_of(tiny_trunk, mood, layers, joined, cached(DEV), objective)
    anew = steps_of(tiny_trunk, mood, layers, live, LiveStates(tiny_trunk, texts(DEV)), objective)
    assert_equal(of_cache, anew, steps=2 * 7)
