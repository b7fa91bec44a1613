"""Heads on limbs, deployed offline: what the ensembles run, and what stays on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.cli.deploy_head import deploy_head
from onetrunk.deploy import Deployer
from onetrunk.deploy.history import list_tasks
from onetrunk.export.onnx_file import export_head
from onetrunk.export.release import get_release
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.limb import Limb
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from tests.fixtures.limbs import random_head_on, random_limb

pytestmark = pytest.mark.slow


@pytest.fixture
def deployer(tiny_repository: Path, tiny_trunk_folder: Path, tmp_path: Path) -> Deployer:
    """One that is told no folder of limbs: it finds the one beside the folder of heads."""
    repository = shutil.copytree(tiny_repository, tmp_path / "repository")
    return Deployer(repository, url=None, trunk=tiny_trunk_folder)


@pytest.fixture
def limb(tiny_trunk: Trunk, tmp_path: Path) -> Limb:
    """A limb on a tap at which the repository's trunk is not cut yet."""
    return random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=2, layers=1)


def steps(repository: Path, ensemble: str = "multitask") -> dict[str, dict[str, str]]:
    config = pb.ModelConfig()
    text_format.Parse((repository / ensemble / "config.pbtxt").read_text(), config)
    return {step.model_name: dict(step.input_map) for step in config.ensemble_scheduling.step}


def test_a_candidate_on_a_limb_is_tried_goes_live_and_back(
    deployer: Deployer, limb: Limb, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """What was exported once needs the limb's folder no more."""
    repository, segment = deployer.repository, limb.identity.segment.name
    random_head_on(limb, tiny_trunk, tmp_path / "heads", "mood", labels=("bad", "good"))
    deployer.candidate(tmp_path / "heads" / "mood")
    assert segment not in steps(repository)
    tried = steps(repository, "candidate_mood")
    assert {"trunk_00_01", "trunk_01_02", segment} < set(tried)
    assert tried[segment]["hidden_02"] == "hidden_02"
    assert "trunk_01_03" not in steps(repository), "cut at the limb's tap"
    shutil.rmtree(tmp_path / "limbs")

    deployer.promote("mood")
    assert {row.task: row.limb for row in list_tasks(repository)}["mood"] == str(limb.identity)
    listed = CliRunner().invoke(deploy_head, ["--list", "--repository", str(repository), "--offline"])
    assert f"mood: stands on limb {limb.identity}" in listed.stdout.splitlines()
    live = steps(repository)
    assert live["head_mood"]["hidden_state"] == limb.identity.segment.output
    assert live["head_topic"]["hidden_state"] != live["head_mood"]["hidden_state"]
    deployer.rollback("mood")
    assert segment not in steps(repository)
    assert "trunk_01_03" in deployer.prune().removed
    deployer.rollback("mood")
    assert segment in steps(repository), "what a rollback needs is not pruned"
    deployer.rollback("mood")
    assert segment in deployer.prune(1).removed
    assert not (repository / segment).exists()
    assert deployer.verify() == []


def test_a_head_that_was_exported_elsewhere_stands_on_a_limb(
    deployer: Deployer, limb: Limb, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    spec = random_head_on(limb, tiny_trunk, tmp_path / "heads", "urgent")
    head = load_bundle(tmp_path / "heads" / "urgent", trunk=limb.branch(tiny_trunk)).head(limb.branch(tiny_trunk))
    folder = tmp_path / "exported" / "urgent"
    folder.mkdir(parents=True)
    export_head(head, spec, folder / "head.onnx", get_release("24.10"))

    def write(limb: str, tap: int = 3) -> None:
        (folder / "head.toml").write_text(
            f'labels = ["no", "yes"]\ntap = {tap}\ntrunk = "{tiny_trunk.identity}"\nlimb = "{limb}"\n'
        )

    write(str(limb.identity))
    deployer.deploy(folder)
    assert steps(deployer.repository)["head_urgent"]["hidden_state"] == limb.identity.segment.output
    for wrong, tap, said in [
        (str(limb.identity), 2, "found tap 2; heads on limb pairs.* stand on tap 3"),
        ("pairs", 3, "key limb: found 'pairs': a limb's identity is its name, tap, layers and hash"),
        ("other-2+1@0123456789ab", 3, "urgent: it stands on limb other.* give --limbs FOLDER"),
    ]:
        write(wrong, tap)
        with pytest.raises(UserError, match=said) as error:
            deployer.deploy(folder)
        assert "\n" not in str(error.value)
