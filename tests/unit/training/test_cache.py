"""The cache of states: what the trunk says, once per text, whatever happens in between."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import onetrunk.training.cache as cache_module
from onetrunk.files import cache_root
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.states import tokenise
from tests.fixtures.stand_ins import stand_in
from tests.fixtures.tasks import mood_rows

TEXTS = [row["sentence"] for row in mood_rows(120, seed=3)]
FP32 = ComputeConfig("cpu", "fp32")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So that even a few texts are many batches."""
    monkeypatch.setattr(cache_module, "_BATCH_TOKENS", {"cpu": 128})


@pytest.fixture
def cache(tiny_trunk, tmp_path):
    return StateCache(tmp_path, tiny_trunk, FP32)


@pytest.fixture
def passes(tiny_trunk, monkeypatch):
    """The taps of every batch that runs through the trunk; may be made to fail at one."""
    seen = SimpleNamespace(taps=[], fail_at=None)
    real = tiny_trunk.states

    def states(*args):
        if len(seen.taps) == seen.fail_at:
            raise KeyboardInterrupt
        seen.taps.append(tuple(args[-1]))
        return real(*args)

    monkeypatch.setattr(tiny_trunk, "states", states)
    return seen


def files(cache):
    [folder] = cache.folder.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".f16", ".part")}


def test_cached_states_are_the_trunks_own_but_for_fp16(cache, tiny_trunk):
    cached = cache.states(TEXTS, [0, 3], max_length=20)
    rows = np.array([7, 0, 99])
    expected = tiny_trunk.states(*tokenise(tiny_trunk, TEXTS, 20).batch(rows, tiny_trunk.pad_token_id), [0, 3])
    for tap, states in cached.states.items():
        state, mask = states.batch(rows)
        assert mask.sum(dim=1).tolist() == states.lengths[rows].tolist()
        torch.testing.assert_close(state, expected[tap] * mask[..., None], atol=5e-3, rtol=1e-3)
    assert cached.cut == sum(len(text.split()) > 18 for text in TEXTS) > 0
    assert cached.size_bytes == 2 * cached.states[0].lengths.sum() * tiny_trunk.width * 2


def test_trunk_runs_once_per_text(cache, passes):
    assert cache.states(TEXTS, [1, 3], max_length=32).trunk_ran
    once = len(passes.taps)
    assert set(passes.taps) == {(1, 3)}
    assert not cache.states(TEXTS, [3], max_length=32).trunk_ran
    assert not cache.states(TEXTS, [1, 3], max_length=32).trunk_ran
    assert len(passes.taps) == once
    # Only what is missing is computed.
    assert cache.states(TEXTS, [1, 2], max_length=32).trunk_ran
    assert set(passes.taps[once:]) == {(2,)}


def test_other_texts_cut_or_arithmetic_make_another_cache(cache, tiny_trunk, tmp_path, passes):
    cache.states(TEXTS, [1], max_length=32)
    cache.states(TEXTS[1:], [1], max_length=32)
    cache.states(TEXTS, [1], max_length=31)
    StateCache(tmp_path, tiny_trunk, ComputeConfig("cpu", "bf16")).states(TEXTS, [1], max_length=32)
    assert len(list(cache.folder.iterdir())) == 4


@pytest.mark.parametrize("fail_at", [0, 1, 7])
def test_killed_pass_goes_on_and_writes_the_same_bytes(cache, passes, tiny_trunk, tmp_path, fail_at):
    undisturbed = StateCache(tmp_path / "undisturbed", tiny_trunk, FP32)
    undisturbed.states(TEXTS, [1, 3], max_length=32)
    batches = len(passes.taps)
    passes.taps.clear()

    passes.fail_at = fail_at
    with pytest.raises(KeyboardInterrupt):
        cache.states(TEXTS, [1, 3], max_length=32)
    assert set(files(cache)) == {"tap_01.part", "tap_03.part"}
    # Cut off in the middle of a batch, in one tap's file only: as a kill may leave it.
    [part] = cache.folder.rglob("tap_03.part")
    os.truncate(part, max(0, part.stat().st_size - 10))

    passes.fail_at = None
    cache.states(TEXTS, [1, 3], max_length=32)
    assert files(cache) == files(undisturbed)
    assert len(passes.taps) == batches + (1 if fail_at else 0)


def test_file_that_was_cut_off_is_made_anew(cache, passes):
    cache.states(TEXTS, [1], max_length=32)
    whole = files(cache)
    [file] = cache.folder.rglob("tap_01.f16")
    os.truncate(file, 100)
    assert cache.states(TEXTS, [1], max_length=32).trunk_ran
    assert files(cache) == whole


def test_too_little_room_is_reported_before_anything_runs(cache, passes, monkeypatch):
    monkeypatch.setattr(
        "onetrunk.training.cache.shutil", stand_in(shutil, disk_usage=lambda path: SimpleNamespace(free=1000))
    )
    with pytest.raises(OneTrunkError, match=r"the disk is full: .* need 0.00 GB, and 0.00 GB are free; .*--cache"):
        cache.states(TEXTS, [1], max_length=32)
    assert passes.taps == []
    assert files(cache) == {}


def test_disk_that_fills_up_leaves_nothing_half(cache, tiny_trunk, monkeypatch):
    real = tiny_trunk.states
    left = [5]

    def states(*args):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(tiny_trunk, "states", states)
    with pytest.raises(OneTrunkError, match="the disk is full"):
        cache.states(TEXTS, [1, 2], max_length=32)
    assert files(cache) == {}
    monkeypatch.undo()
    assert cache.states(TEXTS, [1, 2], max_length=32).trunk_ran


def test_states_that_do_not_fit_are_refused(cache, tiny_trunk, monkeypatch):
    real = tiny_trunk.states
    monkeypatch.setattr(tiny_trunk, "states", lambda *args: {tap: 1e6 * state for tap, state in real(*args).items()})
    with pytest.raises(OneTrunkError, match=r"tap 2 of trunk .* fp16"):
        cache.states(TEXTS, [2], max_length=32)


def test_bad_request_is_refused_before_anything_is_written(cache, tmp_path):
    with pytest.raises(UserError, match="tap 5 is not on this trunk of 4 layers"):
        cache.states(TEXTS, [5], max_length=32)
    with pytest.raises(UserError, match="max_length 65"):
        cache.states(TEXTS, [1], max_length=65)
    assert list(tmp_path.iterdir()) == []


def test_about_says_what_it_is(cache, tiny_trunk):
    cache.states(TEXTS, [1], max_length=32)
    [path] = cache.folder.rglob("about.json")
    about = json.loads(path.read_text())
    assert about["trunk"] == tiny_trunk.identity
    assert (about["texts"], about["max_length"], about["precision"]) == (120, 32, "fp32")


def test_time_of_the_pass_is_known_later(cache):
    computed = cache.states(TEXTS, [1, 3], max_length=32)
    assert 0 < computed.pass_seconds < 60
    cached = cache.states(TEXTS, [1, 3], max_length=32)
    assert not cached.trunk_ran
    assert cached.pass_seconds == computed.pass_seconds


def test_two_runs_at_once_do_not_do_it_twice(tiny_trunk, tmp_path):
    """The lock is on an open file, so that two threads exclude each other just as two processes do."""

    def trunk_ran(_):
        return StateCache(tmp_path, tiny_trunk, FP32).states(TEXTS, [1], max_length=32).trunk_ran

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(trunk_ran, range(2))) == [False, True]


def test_a_place_that_cannot_be_written_is_one_line(tiny_trunk, tmp_path):
    (tmp_path / "home").write_text("no folder", encoding="utf-8")
    with pytest.raises(OneTrunkError, match="cannot be written") as raised:
        StateCache(tmp_path / "home" / ".cache", tiny_trunk, FP32).states(TEXTS, [1], max_length=32)
    assert str(tmp_path / "home") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_root_is_as_given_or_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "variable"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("ONETRUNK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "onetrunk"
