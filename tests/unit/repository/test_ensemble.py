"""The ensembles: what Triton needs so that subsets of tasks work, checked on every pair of tensors."""

import itertools
import json

import pytest

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import cut_trunk
from onetrunk.repository.configs import head_config, segment_config, tokenizer_config
from onetrunk.repository.ensemble import HeadModel, ensemble_configs
from onetrunk.tasks.head_spec import HeadSpec

TOKENIZER = tokenizer_config(buckets=(16, 32), vocab_size=100, pad_token_id=0, version=1)


def head(task, tap, version=1, trunk="bert-6x8@aaa", labels=("no", "yes"), form="single"):
    spec = HeadSpec(
        task=task,
        kind="classification" if labels else "regression",
        form=form,
        labels=labels,
        range=None if labels else (0, 5),
        tap=tap,
        layers=1,
        trunk=trunk,
        width=8,
        max_length=32,
        metric="accuracy",
        scores={},
        created="",
        onetrunk_version="",
    )
    return HeadModel(head_config(spec, versions=[version]), spec.labels, version, task)


def segments(*taps, trunk="bert-6x8@aaa"):
    return {s: segment_config(s, width=8, trunk=trunk, version=1) for s in cut_trunk(set(taps))}


HEADS = [head("cola", 0), head("sst2", 2, version=3), head("rte", 5), head("stsb", 5, labels=None, form="pair")]


@pytest.mark.parametrize(
    "config", ensemble_configs(TOKENIZER, segments(0, 2, 5), HEADS), ids=lambda config: config.name
)
def test_every_tensor_is_made_once_and_used_as_it_is_made(config):
    made = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= made, f"{step.model_name} reads what no step before it makes"
        assert not made & set(step.output_map.values()), f"{step.model_name} makes a tensor anew"
        made |= set(step.output_map.values())
    outputs = {tensor.name for tensor in config.output}
    assert outputs <= made
    assert not {name for name in outputs if name.startswith(("hidden", "padded"))}, "a trunk state is an output"


@pytest.mark.parametrize(
    "config", ensemble_configs(TOKENIZER, segments(0, 2, 5), HEADS), ids=lambda config: config.name
)
def test_every_part_is_pinned(config):
    pinned = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
    assert pinned == {
        "tokenizer": 1,
        "trunk_00_00": 1,
        "trunk_00_02": 1,
        "trunk_02_05": 1,
        "head_cola": 1,
        "head_sst2": 3,
        "head_rte": 1,
        "head_stsb": 1,
    }


def needed(config, outputs):
    """The steps that Triton runs for these outputs: those from which one of them is reached."""
    wanted, steps = set(outputs), []
    for step in reversed(config.ensemble_scheduling.step):
        if wanted & set(step.output_map.values()):
            wanted |= set(step.input_map.values())
            steps.append(step.model_name)
    return set(steps)


def test_a_request_needs_the_trunk_up_to_its_deepest_tap_and_no_further():
    config = ensemble_configs(TOKENIZER, segments(0, 2, 5), HEADS)[0]
    assert needed(config, ["cola"]) == {"tokenizer", "trunk_00_00", "head_cola"}
    assert needed(config, ["sst2"]) == {"tokenizer", "trunk_00_02", "head_sst2"}
    assert needed(config, ["rte", "sst2"]) == {"tokenizer", "trunk_00_02", "trunk_02_05", "head_rte", "head_sst2"}


def test_description_is_what_clients_need():
    for config in ensemble_configs(TOKENIZER, segments(0, 2, 5), HEADS):
        description = json.loads(config.parameters["onetrunk"].string_value)
        assert description["trunk"] == "bert-6x8@aaa"
        assert description["buckets"] == [16, 32]
        assert description["tasks"]["sst2"] == {
            "kind": "classification",
            "form": "single",
            "labels": ["no", "yes"],
            "range": None,
            "metric": "accuracy",
            "tap": 2,
            "layers": 1,
            "version": 3,
        }
        assert description["tasks"]["stsb"]["range"] == [0, 5]


def test_order_of_segments_does_not_matter():
    cut = segments(0, 2, 5)
    turned = dict(reversed(cut.items()))
    for first, second in zip(
        ensemble_configs(TOKENIZER, cut, HEADS), ensemble_configs(TOKENIZER, turned, HEADS), strict=True
    ):
        assert first == second


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        (head("odd", 3), "reads hidden_03, and segments end at hidden_00, hidden_02, hidden_05"),
        (head("odd", 2, trunk="other@b"), "its trunk is not"),
    ],
)
def test_head_that_does_not_fit_is_refused(stray, message):
    with pytest.raises(OneTrunkError, match=message):
        ensemble_configs(TOKENIZER, segments(0, 2, 5), [*HEADS, stray])


def test_all_subsets_need_their_own_heads_only():
    config = ensemble_configs(TOKENIZER, segments(0, 2, 5), HEADS)[1]
    for size in range(1, 5):
        for tasks in itertools.combinations([h.task for h in HEADS], size):
            run = {name for name in needed(config, tasks) if name.startswith("head_")}
            assert run == {f"head_{task}" for task in tasks}
