"""Measuring on a tiny trunk: that all is measured, and on the right models. What a time is depends on the machine."""

import numpy as np
import pytest
import torch

from onetrunk.distill.cost_measurement import ModelFiles, Session, measure_costs, time_interleaved, token_batch
from onetrunk.protocol.errors import UserError


def test_costs_are_measured_part_by_part(tiny_trunk):
    steps = []
    table = measure_costs(
        tiny_trunk, tokens=[8, 16], batch_size=[2], repeats=3, progress=lambda *values: steps.append(values)
    )
    assert (table.trunk, table.threads, table.repeats) == (tiny_trunk.identity, 1, 3)
    assert [(bucket.tokens, bucket.batch_size) for bucket in table.buckets] == [(8, 2), (16, 2)]
    assert [values[1:] for values in steps] == [(done, 6) for done in range(1, 7)]
    for bucket in table.buckets:
        assert len(bucket.trunk_ms) == tiny_trunk.depth + 1
        parts = [*bucket.trunk_ms, bucket.folded_ms, bucket.step_ms, bucket.single_ms, bucket.folded_single_ms]
        assert all(0 < part.low <= part.median <= part.high < float("inf") for part in parts)
        assert np.isfinite(bucket.layer_ms.median)
    assert table.per_text().single_ms > 0
    assert set(table.versions) == {"onetrunk", "onnxruntime", "python", "torch"}


def test_the_single_task_model_is_the_whole_encoder(tiny_trunk, tmp_path):
    files, arrays = ModelFiles(tiny_trunk, tmp_path), token_batch(tiny_trunk, 8, 3)
    whole, folded = (Session(files.single(whole=whole), 1).run(arrays) for whole in (True, False))
    chain = Session(files.head(0, tiny_trunk.depth), 1)
    state = Session(files.segment(0, 0), 1).run(arrays)
    served = chain.run({"hidden_state": state, "attention_mask": arrays["attention_mask"]})
    assert whole.shape == (3, 2)
    np.testing.assert_allclose(whole, folded, atol=1e-5)
    np.testing.assert_allclose(whole, served, atol=1e-5)


def test_measuring_leaves_torchs_generator_alone(tiny_trunk, tmp_path):
    before = torch.random.get_rng_state()
    ModelFiles(tiny_trunk, tmp_path).head(1, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rounds_call_each_run_once_in_changing_order():
    calls = []
    times = time_interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 6)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert all(values.shape == (6,) for values in times.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": [65]}, "this trunk reads 1 to 64 tokens"),
        ({"repeats": 0}, "give 1 or more of each"),
        ({"threads": 0}, "give 1 or more of each"),
        ({"tokens": []}, "no padded length"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_trunk, arguments, message):
    with pytest.raises(UserError, match=message):
        measure_costs(tiny_trunk, **arguments)
