"""Limbs: what a branch computes, and which folders are read."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onetrunk.nn import limb as module
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.head import new_head
from onetrunk.nn.limb import WEIGHTS, Limb, find_limb, load_limb, new_layers
from onetrunk.nn.tensor_file import read_tensors
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import LIMB_JSON
from onetrunk.protocol.names import LimbId
from tests.conftest import write_tiny_trunk
from tests.fixtures.limbs import random_head_on, random_limb

IDS = torch.tensor([[2, 6, 7, 8, 3], [2, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TYPES = torch.zeros_like(IDS)


@pytest.fixture
def limb(tiny_trunk: Trunk, tmp_path: Path) -> Limb:
    return random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=1, layers=2)


def test_a_branch_runs_the_trunk_up_to_the_limbs_tap_and_then_the_limb(limb: Limb, tiny_trunk: Trunk) -> None:
    before = tiny_trunk.states(IDS, TYPES, MASK, [1, 3])
    branch = limb.branch(tiny_trunk)
    state = before[1]
    context = tiny_trunk.shared.prepare(MASK, state)
    for layer in branch.layers[1:3]:
        state = tiny_trunk.encoder.run_layer(layer, state, context)
    found = branch.states(IDS, TYPES, MASK, [3])[3]
    assert torch.equal(found, state)
    assert (found - before[3]).abs().max() > 0.1
    assert torch.equal(tiny_trunk.states(IDS, TYPES, MASK, [3])[3], before[3]), "the trunk is as it was"
    assert branch.layers[0] is tiny_trunk.layers[0]
    assert branch.layers[3] is tiny_trunk.layers[3], "what heads start from"


def test_a_branch_has_the_limbs_identity_and_one_tap(limb: Limb, tiny_trunk: Trunk) -> None:
    branch = limb.branch(tiny_trunk)
    assert branch.identity == str(limb.identity)
    assert branch.root is tiny_trunk
    assert not any(parameter.requires_grad for parameter in branch.parameters())
    with pytest.raises(UserError, match=r"tap 1 is not on limb pairs-1\+2@.*: heads on it stand on tap 3"):
        new_head(branch, outputs=2, tap=1, layers=1)


def test_the_identity_follows_the_weights(limb: Limb, tiny_trunk: Trunk, tmp_path: Path) -> None:
    again = random_limb(tiny_trunk, tmp_path / "again" / "pairs", tap=1, layers=2)
    other = random_limb(tiny_trunk, tmp_path / "other" / "pairs", tap=1, layers=2, seed=1)
    assert again.identity == limb.identity != other.identity
    assert LimbId.parse(str(limb.identity)) == limb.identity


def test_a_head_finds_its_limb_by_its_identity(limb: Limb, tiny_trunk_folder: Path, tmp_path: Path) -> None:
    from onetrunk.nn.trunk import load_trunk

    trunk = load_trunk(tiny_trunk_folder)
    random_head_on(limb, trunk, tmp_path / "heads", "urgent")
    fresh = load_trunk(tiny_trunk_folder)
    with pytest.raises(UserError, match=re.escape(f"urgent: it stands on limb {limb.identity}")):
        load_bundle(tmp_path / "heads" / "urgent", trunk=fresh)
    fresh.limbs = (tmp_path / "limbs",)
    head = load_bundle(tmp_path / "heads" / "urgent", trunk=fresh).head(fresh)
    state = fresh.branch(limb.identity).states(IDS, TYPES, MASK, [3])[3]
    with torch.no_grad():
        assert torch.allclose(head(state, MASK), head.forward_whole(state, MASK), atol=1e-5)


def test_a_limb_that_is_trained_again_leaves_the_old_one_for_its_heads(limb: Limb, tiny_trunk: Trunk) -> None:
    limbs = limb.folder.parent
    new = random_limb(tiny_trunk, limb.folder, tap=1, layers=2, seed=1)
    kept = find_limb([limbs], limb.identity)
    assert kept.folder == limbs / f"pairs@{limb.identity.digest}"
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in limb.weights.items())
    assert find_limb([limbs], new.identity).folder == limb.folder
    random_limb(tiny_trunk, limb.folder, tap=1, layers=2, seed=1)
    again = random_limb(tiny_trunk, limb.folder, tap=1, layers=2)
    assert again.identity == limb.identity
    assert len(list(limbs.iterdir())) == 3, "each once, and the first in two places"


def test_another_limb_of_the_name_is_told(limb: Limb, tiny_trunk: Trunk) -> None:
    random_limb(tiny_trunk, limb.folder, tap=1, layers=2, seed=1)
    shutil.rmtree(limb.folder.parent / f"pairs@{limb.identity.digest}")
    with pytest.raises(UserError, match=r"is pairs-1.* now: train the head again on that one"):
        find_limb([limb.folder.parent], limb.identity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trunk": "bert-4x32@000000000000"}, "trained on trunk bert-4x32@000000000000"),
        ({"layers": 1}, "does not fit limb.json"),
        ({"layers": 3}, "this trunk has 4 layers"),
        ({"tap": 2}, "this trunk has 4 layers"),
        ({"tap": 100}, "this trunk has 4 layers"),
        ({"tap": -1}, "tap"),
        ({"layers": 10**9}, "layers"),
        ({"width": 10**9}, "width"),
        ({"tasks": {}}, "tasks"),
        ({"name": "../up"}, "name"),
        ({"name": "other"}, "a limb's folder has its name"),
        ({"more": 1}, "more"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    limb: Limb, tiny_trunk: Trunk, change: dict[str, object], message: str
) -> None:
    path = limb.folder / LIMB_JSON
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as error:
        load_limb(limb.folder).branch(tiny_trunk)
    assert "\n" not in str(error.value)


def test_broken_weights_are_refused(limb: Limb, tiny_trunk: Trunk) -> None:
    weights = load_file(limb.folder / WEIGHTS)
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, limb.folder / WEIGHTS)
    with pytest.raises(UserError, match="contains NaN"):
        load_limb(limb.folder)
    save_file({**weights, name: torch.zeros(4096, 4096)}, limb.folder / WEIGHTS)
    with pytest.raises(UserError, match=r"larger|bytes|at most"):
        load_limb(limb.folder)
    (limb.folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="train the limb again"):
        load_limb(limb.folder)


def test_a_limb_that_is_replaced_while_it_is_read_is_not_read_as_another(
    limb: Limb, tiny_trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights would run under the identity of the new one."""
    real = read_tensors

    def read(path: Path, *arguments: object, **options: object) -> object:
        found = real(path, *arguments, **options)  # type: ignore[arg-type]
        random_limb(tiny_trunk, limb.folder, tap=1, layers=2, seed=5)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_tensors", read)
        patch.setattr("tests.fixtures.limbs.load_limb", lambda folder: None)
        with pytest.raises(UserError, match="it was written anew while it was read: run the same command again"):
            load_limb(limb.folder)
    assert load_limb(limb.folder).identity != limb.identity


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda branch: pickle.loads(pickle.dumps(branch))])
def test_a_branch_is_copied_with_its_trunk(limb: Limb, tiny_trunk: Trunk, copied: Callable[[Trunk], Trunk]) -> None:
    branch = limb.branch(tiny_trunk)
    other = copied(branch)
    assert (other.identity, other.root.identity) == (branch.identity, tiny_trunk.identity)
    assert other.layers[0] is other.root.layers[0], "shared, as in the original"
    assert other.branch(limb.identity) is other
    assert torch.equal(other.states(IDS, TYPES, MASK, [3])[3], branch.states(IDS, TYPES, MASK, [3])[3])


def test_another_trunk_is_refused(limb: Limb, tmp_path: Path) -> None:
    from onetrunk.nn.trunk import load_trunk

    other = load_trunk(write_tiny_trunk(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="give its own trunk by --trunk"):
        limb.branch(other)


@pytest.mark.parametrize(("tap", "layers"), [(0, 4), (3, 1), (2, 2), (4, 1), (1, 0)])
def test_a_limb_leaves_a_layer_for_heads(tiny_trunk: Trunk, tap: int, layers: int) -> None:
    with pytest.raises(UserError, match=r"a limb on tap|has fewer than 2 layers above it"):
        new_layers(tiny_trunk, tap, layers)
