"""Training a head: what changes and what must not, and that a seed decides all of it."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from onetrunk.nn.head import new_head
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.kinds import get_kind
from onetrunk.training import loop
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.evaluation import Evaluation, LabelledStates, evaluate, raw_outputs
from onetrunk.training.loop import DivergedError, fit, linear_schedule
from onetrunk.training.states import tokenise


class LiveStates:
    """The trunk, run anew for every batch: what the cache is there to spare."""

    def __init__(self, trunk, texts, tap):
        self._trunk, self._tap = trunk, tap
        self._rows = tokenise(trunk, texts, 32)
        self.lengths = self._rows.lengths

    def batch(self, rows):
        input_ids, type_ids, mask = self._rows.batch(rows, self._trunk.pad_token_id)
        return self._trunk.states(input_ids, type_ids, mask, [self._tap])[self._tap], mask


@pytest.fixture
def head(tiny_trunk):
    torch.manual_seed(0)
    return new_head(tiny_trunk, outputs=2, tap=1, layers=2)


@pytest.fixture
def data(mood, tiny_trunk, tmp_path):
    cache = StateCache(tmp_path / "cache", tiny_trunk, ComputeConfig("cpu", "fp32"))
    split = {}
    for name in ("train", "dev"):
        examples = read_examples(mood, name)
        states = cache.states(examples.texts, [1], max_length=32).states[1]
        split[name] = LabelledStates(states, torch.tensor(examples.targets))
    return split["train"], split["dev"]


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_head_learns_and_the_trunk_stays_bit_for_bit(mood, tiny_trunk, data):
    before = weights(tiny_trunk)
    torch.manual_seed(0)
    head = new_head(tiny_trunk, outputs=2, tap=1, layers=1)
    state = fit(head, mood, mood.recipe.model_copy(update={"epochs": 12, "learning_rate": 5e-3}), *data)
    assert same(weights(tiny_trunk), before)
    assert state.losses[-1] < 0.5 * state.losses[0]
    assert state.scores[state.best_epoch("accuracy")]["accuracy"] > 0.8  # chance is a half


def test_of_some_rows_nothing_else_is_trained_on(mood, head, data):
    seen = []

    def objective(raw, rows):
        seen.extend(rows.tolist())
        return raw.square().mean()

    rows = np.array([3, 50, 51, 120, 199])
    fit(
        head, mood, mood.recipe.model_copy(update={"epochs": 2, "batch_size": 2}), *data, objective=objective, rows=rows
    )
    assert sorted(seen) == sorted([*rows, *rows])


def test_only_the_heads_own_parameters_train(mood, tiny_trunk, head, data):
    before = weights(head)
    fit(head, mood, mood.recipe.model_copy(update={"epochs": 1}), *data)
    changed = {name for name, tensor in weights(head).items() if not torch.equal(tensor, before[name])}
    layer = [
        *(f"attention.self.{part}.{what}" for part in ("query", "key", "value") for what in ("weight", "bias")),
        *(
            f"{part}.{what}"
            for part in ("attention.output.dense", "attention.output.LayerNorm")
            for what in ("weight", "bias")
        ),
        *(
            f"{part}.{what}"
            for part in ("intermediate.dense", "output.dense", "output.LayerNorm")
            for what in ("weight", "bias")
        ),
    ]
    expected = {f"layers.{index}.{name}" for index in (0, 1) for name in layer} | {"output.weight", "output.bias"}
    # The key bias of the folded layer drops out of the softmax: it has no gradient.
    assert changed == expected - {"layers.1.attention.self.key.bias"}
    assert {name for name, parameter in head.named_parameters() if parameter.requires_grad} == expected
    assert not any(parameter.requires_grad for parameter in tiny_trunk.parameters())


def test_cached_training_equals_uncached_step_by_step(mood, tiny_trunk, data):
    live = [
        LabelledStates(LiveStates(tiny_trunk, read_examples(mood, name).texts, 1), cached.targets)
        for name, cached in zip(("train", "dev"), data, strict=True)
    ]
    losses = {}
    for name, source in (("cached", data), ("live", live)):
        torch.manual_seed(0)
        head = new_head(tiny_trunk, outputs=2, tap=1, layers=1)
        steps = losses.setdefault(name, [])
        training = type(get_kind(mood.kind).training)
        original = training.loss

        def recording(self, raw, targets, *args, original=original, steps=steps):
            loss = original(self, raw, targets, *args)
            steps.append(loss.item())
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "loss", recording)
            fit(head, mood, mood.recipe, *source)
    assert len(losses["cached"]) == 3 * 13  # 200 texts in batches of 16, three epochs
    # What is left is the rounding of the cached states to fp16.
    np.testing.assert_allclose(losses["cached"], losses["live"], atol=5e-3)


def test_same_seed_same_weights_other_seed_others(mood, tiny_trunk, data):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        head = new_head(tiny_trunk, outputs=2, tap=1, layers=1)
        torch.manual_seed(len(found))  # whatever else has been drawn before does not matter
        fit(head, mood, mood.recipe.model_copy(update={"seed": seed}), *data)
        found.append(weights(head))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_training_leaves_the_callers_generator_alone(mood, head, data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(head, mood, mood.recipe.model_copy(update={"epochs": 1}), *data)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("killed_after", [1, 2])
def test_training_that_goes_on_ends_bit_for_bit_the_same(mood, tiny_trunk, data, killed_after):
    def fresh():
        torch.manual_seed(0)
        return new_head(tiny_trunk, outputs=2, tap=1, layers=1)

    states = []

    def kill(state):
        states.append(state)
        if len(states) == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), mood, mood.recipe, *data, save=kill)
    whole, resumed = fresh(), fresh()
    undisturbed = fit(whole, mood, mood.recipe, *data)
    went_on = fit(resumed, mood, mood.recipe, *data, resume=states[-1])
    assert same(weights(whole), weights(resumed))
    assert went_on.losses == undisturbed.losses
    assert went_on.scores == undisturbed.scores
    assert same(went_on.best_weights, undisturbed.best_weights)


@pytest.mark.parametrize("killed_after", [2, 13, 20])
def test_training_killed_within_an_epoch_goes_on_from_its_last_checkpoint(mood, tiny_trunk, data, killed_after):
    # 13 steps an epoch, and a dropout that draws a number for every state.
    recipe = mood.recipe.model_copy(update={"dropout": 0.2})

    def fresh():
        torch.manual_seed(0)
        return new_head(tiny_trunk, outputs=2, tap=1, layers=2)

    saved, steps = [], []

    def kill(what, done, total):
        steps.append(done)
        if done == killed_after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            fresh(),
            mood,
            recipe,
            *data,
            save=lambda state: saved.append(deepcopy(state)),
            save_seconds=0,
            progress=kill,
        )
    # After 13 steps, the epoch is over.
    assert saved[-1].epoch_steps == killed_after % 13
    whole, resumed = fresh(), fresh()
    undisturbed = fit(whole, mood, recipe, *data)
    steps.clear()
    went_on = fit(resumed, mood, recipe, *data, resume=saved[-1], progress=lambda what, done, total: steps.append(done))
    assert steps[0] == killed_after + 1
    assert same(weights(whole), weights(resumed))
    assert went_on.losses == undisturbed.losses
    assert went_on.scores == undisturbed.scores
    assert same(went_on.best_weights, undisturbed.best_weights)
    assert went_on.epoch_steps == 0


def test_no_checkpoint_within_an_epoch_before_its_time(mood, head, data):
    saved = []
    fit(head, mood, mood.recipe.model_copy(update={"epochs": 1}), *data, save=saved.append, save_seconds=3600)
    assert [state.epoch_steps for state in saved] == [0]


def test_best_weights_are_those_of_the_best_epoch(mood, tiny_trunk, head, data):
    _, dev = data
    state = fit(head, mood, mood.recipe, *data)
    head.load_state_dict(state.best_weights)
    assert evaluate(head, dev, mood).scores == state.scores[state.best_epoch("accuracy")]


def test_an_epoch_is_judged_by_thresholds_of_its_own():
    """A head that ranks a rare label's texts rightly, and is sure of none of them."""

    class Ready(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.output = torch.nn.Linear(1, 1)

        def forward(self, raw):
            return raw

    class Raw:
        lengths = np.array([3, 1, 2, 2])

        def batch(self, rows):
            return (torch.tensor([[-3.0], [-5.0], [-4.0], [-6.0]])[torch.from_numpy(rows)],)

    task = Task(name="rare", kind="multilabel", labels=("one",), metrics=("micro_f1",), train="a.csv", dev="b.csv")
    found = evaluate(Ready(), LabelledStates(Raw(), torch.tensor([[1.0], [0.0], [1.0], [0.0]])), task)
    assert found.scores == {"micro_f1": 1}
    assert found.fitted["thresholds"] == pytest.approx([torch.tensor([-4.0, -5.0]).sigmoid().mean().item()], abs=1e-6)


def test_outputs_come_in_the_order_of_the_data(head, data):
    _, dev = data
    found = raw_outputs(head, dev.states)
    for row in (0, 17, 59):
        with torch.no_grad():
            torch.testing.assert_close(head(*dev.states.batch(np.array([row])))[0], found[row])


def test_diverging_training_stops_and_says_where(mood, head, data):
    with pytest.raises(DivergedError, match=r"task mood: the loss is (nan|inf) at step \d+ of 39 \(epoch \d.*--lr"):
        fit(head, mood, mood.recipe.model_copy(update={"learning_rate": 1e30, "clip": 1e30}), *data)


def test_learning_rate_rises_and_falls_in_lines():
    rates = [linear_schedule(step, 20, 0.2) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(np.diff(rates[4:]), -1 / 16)
    assert rates[-1] == pytest.approx(1 / 16)
    assert linear_schedule(0, 1, 0.1) == 1
    assert [linear_schedule(step, 2, 1.0) for step in range(2)] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(("layers", "within"), [(1, 1), (2, 3)])
def test_folded_layer_trains_in_one_thread(mood, tiny_trunk, data, layers, within):
    seen = set()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        head = new_head(tiny_trunk, outputs=2, tap=1, layers=layers)
        recipe = mood.recipe.model_copy(update={"layers": layers, "epochs": 1})
        fit(head, mood, recipe, *data, progress=lambda *_: seen.add(torch.get_num_threads()))
        assert seen == {within}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_dev_score_that_is_nan_stops_training(mood, head, data, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: Evaluation({"accuracy": math.nan}, ()))
    with pytest.raises(DivergedError, match=r"accuracy.* nan "):
        fit(head, mood, mood.recipe.model_copy(update={"epochs": 1}), *data)
