"""The cost of a plan measured in one run beside single-task models, on a tiny trunk."""

import numpy as np
import pytest

from benchmarks.study.measured_cost import measure_plan_cost
from onetrunk.distill.cost_measurement import ModelFiles
from onetrunk.protocol.errors import UserError


def test_share_is_measured_in_one_run(tiny_trunk):
    heads = [(0, 1, "cls"), (2, 2, "mean"), (2, 1, "learned")]
    report = measure_plan_cost(heads, tiny_trunk, tokens=[8], batch_size=[1, 2], repeats=3)
    assert report.heads == tuple(heads)
    assert [(row.tokens, row.batch_size) for row in report.rows] == [(8, 1), (8, 2)]
    for row in report.rows:
        for part in (row.plan_ms, row.singles_ms, row.folded_singles_ms, row.share, row.folded_share):
            assert 0 < part.low <= part.median <= part.high < float("inf")
    assert report.share == pytest.approx(np.mean([row.share.median for row in report.rows]))


def test_heads_on_a_limb_read_its_state_and_the_trunk_ends_below_it(tiny_trunk, monkeypatch):
    segments = []
    real = ModelFiles.segment

    def segment(files, start, stop):
        segments.append((start, stop))
        return real(files, start, stop)

    monkeypatch.setattr(ModelFiles, "segment", segment)
    limbs = {(1, 2): [(2, 1, "cls"), (2, 1, "mean")], (0, 2): [(2, 1, "cls")]}
    found = measure_plan_cost([(1, 1, "cls")], tiny_trunk, tokens=[8], batch_size=[1], repeats=3, limbs=limbs)
    assert found.heads == ((1, 1, "cls"), (2, 1, "cls"), (2, 1, "mean"), (2, 1, "cls"))
    assert segments == [(0, 0), (0, 1), (1, 2), (0, 2)]
    assert found.share > 0


def test_a_head_that_does_not_fit_is_refused(tiny_trunk):
    with pytest.raises(UserError, match="has 2 layers at most, not 3"):
        measure_plan_cost([(2, 3, "cls")], tiny_trunk, repeats=1)
