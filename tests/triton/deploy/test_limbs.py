"""Heads on limbs on a running server: a limb comes with its first head, stands beside the old one, and goes with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.deploy import Deployer
from onetrunk.deploy.artifacts import reference_answers
from onetrunk.export.onnx_file import ServedHead
from onetrunk.export.parity import HeadFile
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.serving import Server
from tests.fixtures.limbs import random_head_on, random_limb

pytestmark = pytest.mark.slow

KEY = "a-key"
ROWS = [("the film was very good", ""), ("turn the light off", ""), ("a", "")]


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_repository, tmp_path / "repository")


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY, probe_interval_s=None) as running:
        yield running


def runs(server: AdminClient, part: str) -> int:
    """How often a model has run. Triton counts an update of a model from nothing, so of a model in use only."""
    return sum(model.inference_count for model in server.statistics() if model.name == part)


def test_heads_on_a_limb_come_change_and_go_while_others_are_served(
    server: Server, repository: Path, tiny_trunk_folder: Path, tmp_path: Path
) -> None:
    limbs, heads = tmp_path / "limbs", tmp_path / "heads"
    trunk = load_trunk(tiny_trunk_folder)
    trunk.limbs = (limbs,)
    old = random_limb(trunk, limbs / "pairs", tap=1, layers=1)
    random_head_on(old, trunk, heads, "urgent")
    random_head_on(old, trunk, heads, "polite", seed=1)

    def expected(task: str) -> np.ndarray:
        loaded = load_bundle(heads / task, trunk=trunk)
        module = ServedHead(loaded.head(trunk), loaded.spec)
        return reference_answers(trunk, HeadFile("", heads / task, loaded.spec, module), ROWS, 32)

    with (
        AdminClient(server.grpc_url, KEY) as admin,
        Client(server.grpc_url) as client,
        Deployer(repository, url=server.grpc_url, trunk=tiny_trunk_folder, limbs=limbs, admin_key=KEY) as deployer,
    ):
        before = admin.ask("multitask", ROWS, ["mood"])["mood"]
        added = deployer.deploy(heads / "urgent")
        segment = old.identity.segment.name
        assert any(name.startswith(segment) for name in added.written)
        assert np.abs(admin.ask("multitask", ROWS, ["urgent"])["urgent"] - expected("urgent")).max() < 1e-4
        second = deployer.deploy(heads / "polite")
        assert not any(name.startswith(segment) for name in second.written), "the limb is there already"
        assert client.tasks()["urgent"].limb == str(old.identity)

        ran = runs(admin, segment)
        assert np.array_equal(admin.ask("multitask", ROWS, ["mood"])["mood"], before)
        assert runs(admin, segment) == ran, "who asks the trunk's heads does not run the limb"
        admin.ask("multitask", ROWS, ["urgent", "polite"])
        assert runs(admin, segment) == ran + len(ROWS), "two heads on it run it once"

        new = random_limb(trunk, limbs / "pairs", tap=1, layers=1, seed=5)
        trunk = load_trunk(tiny_trunk_folder)
        trunk.limbs = (limbs,)
        was = admin.ask("multitask", ROWS, ["urgent", "polite"])
        random_head_on(new, trunk, heads, "urgent", seed=2)
    with (
        AdminClient(server.grpc_url, KEY) as admin,
        Deployer(repository, url=server.grpc_url, trunk=tiny_trunk_folder, limbs=limbs, admin_key=KEY) as deployer,
    ):
        deployer.deploy(heads / "urgent")
        both = admin.ask("multitask", ROWS, ["urgent", "polite"])
        assert np.abs(both["urgent"] - expected("urgent")).max() < 1e-4
        assert np.array_equal(both["polite"], was["polite"]), "the other head stays on the old limb"
        deployer.rollback("urgent")
        assert np.array_equal(admin.ask("multitask", ROWS, ["urgent"])["urgent"], was["urgent"])
        deployer.deploy(heads / "urgent")
        deployer.remove("polite")
        deployer.prune(keep=1)
        assert not (repository / segment).exists()
        assert deployer.verify() == []
        assert np.abs(admin.ask("multitask", ROWS, ["urgent"])["urgent"] - expected("urgent")).max() < 1e-4
        assert np.array_equal(admin.ask("multitask", ROWS, ["mood"])["mood"], before)
