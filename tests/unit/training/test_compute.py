"""Device and precision: what is asked for, or what is there and exact enough."""

import math

import pytest
import torch

from onetrunk.protocol.errors import UserError
from onetrunk.training import compute
from onetrunk.training.compute import ComputeConfig, choose_compute
from tests.fixtures.limbs import random_limb


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cuda")
def test_auto_takes_bf16_only_where_it_is_fast_and_exact(tiny_trunk, monkeypatch):
    monkeypatch.setattr(compute, "_cpu_has_fast_bf16", lambda: False)
    assert choose_compute(tiny_trunk) == ComputeConfig("cpu", "fp32")
    monkeypatch.setattr(compute, "_cpu_has_fast_bf16", lambda: True)
    assert choose_compute(tiny_trunk) == ComputeConfig("cpu", "bf16")
    monkeypatch.setattr(compute, "_MAX_RELATIVE_ERROR", 1e-6)
    assert choose_compute(tiny_trunk) == ComputeConfig("cpu", "fp32")


@pytest.mark.parametrize(("bf16_seconds", "fast"), [(0.5, True), (0.9, False), (1.4, False)])
def test_what_is_fast_is_measured(monkeypatch, bf16_seconds, fast):
    """AVX-512's own instructions for bf16 took 1.4 times as long as fp32 on one processor, and 0.3 on another."""
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
    monkeypatch.setattr(compute, "_product_seconds", seconds.__getitem__)
    assert compute._cpu_has_fast_bf16.__wrapped__() is fast


def test_a_product_takes_some_time_in_either_data_type():
    assert min(compute._product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)) > 0


@pytest.mark.usefixtures("no_cuda")
def test_a_branch_is_measured_above_its_limb(tiny_trunk, monkeypatch, tmp_path):
    limb = random_limb(tiny_trunk, tmp_path / "pairs", tap=1)
    monkeypatch.setattr(compute, "_cpu_has_fast_bf16", lambda: True)
    assert choose_compute(limb.branch(tiny_trunk)) == ComputeConfig("cpu", "bf16")


@pytest.mark.usefixtures("no_cuda")
def test_what_is_asked_for_is_taken_or_refused(tiny_trunk):
    assert choose_compute(tiny_trunk, "cpu", "bf16") == ComputeConfig("cpu", "bf16")
    assert choose_compute(tiny_trunk, "auto", "fp32") == ComputeConfig("cpu", "fp32")
    with pytest.raises(UserError, match="no CUDA device here; allowed are auto, cpu"):
        choose_compute(tiny_trunk, "cuda")


def test_bf16_states_are_close_and_come_as_fp32(tiny_trunk):
    ids = torch.arange(5, 15).reshape(1, 10)
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids)
    exact = tiny_trunk.states(ids, zeros, ones, [4])[4]
    with ComputeConfig("cpu", "bf16").context():
        state = tiny_trunk.states(ids, zeros, ones, [4])[4]
    assert state.dtype == torch.float32
    error = (state - exact).norm() / exact.norm()
    assert 0 < error < 0.02


@pytest.mark.usefixtures("no_cuda")
def test_auto_takes_fp32_where_bf16_gives_nan(tiny_trunk, monkeypatch):
    monkeypatch.setattr(compute, "_cpu_has_fast_bf16", lambda: True)
    monkeypatch.setattr(compute, "_relative_error", lambda *_: math.nan)
    assert choose_compute(tiny_trunk) == ComputeConfig("cpu", "fp32")
