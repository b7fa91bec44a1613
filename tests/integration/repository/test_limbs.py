"""A repository whose heads stand on the trunk and on limbs: its segments are a tree, each exported and checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.compare.systems import Systems
from onetrunk.deploy import Deployer
from onetrunk.export.onnx_file import ServedHead, export_head
from onetrunk.export.precision import parse_precision
from onetrunk.export.release import get_release
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.limb import load_limb
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Precision, read_manifest
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.repository.state import read_state
from tests.fixtures.limbs import random_head_on, random_limb

pytestmark = pytest.mark.slow


@pytest.fixture
def request_(tiny_trunk: Trunk, tiny_trunk_folder: Path, tiny_heads: Path, tmp_path: Path) -> BuildRequest:
    """Heads on the trunk's taps 0, 1 and 3, and two on a limb on tap 1."""
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    limb = random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=1, layers=1)
    for seed, task in enumerate(("urgent", "polite")):
        random_head_on(limb, tiny_trunk, heads, task, seed=seed)
    return BuildRequest(
        output=tmp_path / "repository",
        heads=heads,
        trunk=tiny_trunk_folder,
        limbs=tmp_path / "limbs",
        max_length=32,
    )


def steps(repository: Path, ensemble: str = "multitask") -> dict[str, dict[str, str]]:
    config = pb.ModelConfig()
    text_format.Parse((repository / ensemble / "config.pbtxt").read_text(), config)
    return {step.model_name: dict(step.input_map) for step in config.ensemble_scheduling.step}


def test_a_limb_is_one_segment_beside_the_trunks(request_: BuildRequest) -> None:
    report = build_repository(request_)
    (limb,) = [name for name in report.models if name.startswith("limb_pairs_")]
    assert limb.endswith("_01_02")
    assert max(report.differences.values()) < 1e-5
    assert {limb, "head_urgent", "head_polite", "trunk_01_03"} <= set(report.differences)
    found = steps(request_.output)
    assert found[limb]["hidden_01"] == "hidden_01"
    state = limb.replace("limb", "hidden", 1).replace("_01_02", "_02")
    assert found["head_urgent"]["hidden_state"] == state
    assert found["head_mood"]["hidden_state"] == "hidden_03"
    assert found["trunk_01_03"]["hidden_01"] == "hidden_01", "the trunk goes on without the limb"
    assert not build_repository(request_).changed

    one = replace(request_, output=request_.output.with_name("one"), tasks=["urgent"])
    assert set(build_repository(one).models) == {"tokenizer", "trunk_00_01", limb, "head_urgent"}
    state_ = read_state(one.output)
    assert [segment.name for segment in state_.segments] == ["trunk_00_01", limb]


def test_heads_of_a_limb_are_grouped(request_: BuildRequest) -> None:
    report = build_repository(replace(request_, group_heads=True))
    (group,) = [name for name in report.models if name.startswith("heads_pairs_")]
    (limb,) = [name for name in report.models if name.startswith("limb_pairs_")]
    assert report.differences[group] < 1e-5
    found = steps(request_.output)
    assert found[group] == {"hidden_01": "hidden_01", "attention_mask": "padded_attention_mask"}
    assert "head_urgent" not in found
    assert limb not in found, "the group holds it"
    state = read_state(request_.output)
    assert limb in {segment.name for segment in state.segments}
    assert limb not in {segment.name for segment in state.segments_in_use}
    record = json.loads((request_.output / group / "1" / "group.json").read_text())
    assert record["segment"] == {"name": limb, "version": 1}
    assert Deployer(request_.output, url=None).verify() == []
    assert not build_repository(replace(request_, group_heads=True)).changed


@pytest.mark.parametrize("precision", ["fp32", "int8", "trunk=int8", "heads=int8"])
def test_a_group_with_its_limb_answers_bit_for_bit_as_its_parts(request_: BuildRequest, precision: str) -> None:
    gate = GateSettings(on=precision == "fp32")
    build_repository(replace(request_, group_heads=True, precision=parse_precision(precision), gate=gate))
    (limb,) = request_.output.glob("limb_pairs_*/1/model.onnx")
    (group,) = request_.output.glob("heads_pairs_*/1/model.onnx")
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8])
    below = np.random.default_rng(1).normal(size=(3, 9, 32)).astype(np.float32)
    feeds = {"hidden_01": below, "attention_mask": mask}
    (state,) = onnxruntime.InferenceSession(limb).run(None, feeds)
    together = onnxruntime.InferenceSession(group).run(["polite", "urgent"], feeds)
    for task, found in zip(("polite", "urgent"), together, strict=True):
        head = onnxruntime.InferenceSession(request_.output / f"head_{task}/1/model.onnx")
        (alone,) = head.run(None, {"hidden_state": state, "attention_mask": mask})
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_limb_of_16_bits_stays_a_model(request_: BuildRequest, dtype: str) -> None:
    """In one file its state would not be rounded as between two models."""
    precision = parse_precision(dtype)
    build_repository(replace(request_, group_heads=True, precision=precision, gate=GateSettings(on=False)))
    found = steps(request_.output)
    (limb,) = [name for name in found if name.startswith("limb_pairs_")]
    (group,) = [name for name in found if name.startswith("heads_pairs_")]
    assert found[group]["hidden_state"] == limb.replace("limb", "hidden", 1).replace("_01_02", "_02")


def test_a_limb_that_a_head_outside_the_group_reads_stays_a_model(
    request_: BuildRequest, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """Were it in the group, it would run twice for a request of all tasks."""
    limb = load_limb(request_.limbs / "pairs")
    branch = limb.branch(tiny_trunk)
    spec = random_head_on(limb, tiny_trunk, tmp_path / "made", "apart")
    head, folder = load_bundle(tmp_path / "made" / "apart", trunk=branch).head(branch), request_.heads / "apart"
    folder.mkdir()
    export_head(head, spec, folder / "head.onnx", get_release("24.10"))
    model = onnx.load(folder / "head.onnx")
    model.opset_import.add(domain="ai.onnx.ml", version=3)  # ours have none of it
    onnx.save(model, folder / "head.onnx")
    (folder / "head.toml").write_text(
        'task = "apart"\nkind = "classification"\nform = "single"\nlabels = ["no", "yes"]\nmetric = "accuracy"\n'
        f'tap = 2\nlayers = 1\ntrunk = "{tiny_trunk.identity}"\nlimb = "{spec.limb}"\n'
    )
    build_repository(replace(request_, group_heads=True))
    found = steps(request_.output)
    (group,) = [name for name in found if name.startswith("heads_pairs_")]
    (name,) = [name for name in found if name.startswith("limb_pairs_")]
    assert found[group]["hidden_state"] == found["head_apart"]["hidden_state"] == limb.identity.segment.output
    shutil.rmtree(folder)
    build_repository(replace(request_, group_heads=True))
    assert name not in steps(request_.output), "then it moves into the group"


def test_a_deployed_head_reads_the_limb_beside_the_group(
    request_: BuildRequest, tiny_trunk: Trunk, tiny_trunk_folder: Path, tmp_path: Path
) -> None:
    build_repository(replace(request_, group_heads=True))
    (group,) = [name for name in steps(request_.output) if name.startswith("heads_pairs_")]
    limb = load_limb(request_.limbs / "pairs")
    random_head_on(limb, tiny_trunk, tmp_path / "new", "urgent", seed=9)
    deployer = Deployer(request_.output, url=None, trunk=tiny_trunk_folder, limbs=request_.limbs)
    deployer.deploy(tmp_path / "new" / "urgent")
    found = steps(request_.output)
    assert found["head_urgent"]["hidden_state"] == limb.identity.segment.output
    assert {group, limb.identity.segment.name} <= found.keys()
    deployer.rollback("urgent")
    assert not {"head_urgent", limb.identity.segment.name} & steps(request_.output).keys()
    assert deployer.verify() == []
    deployer.candidate(tmp_path / "new" / "urgent")
    assert limb.identity.segment.name in steps(request_.output, "candidate_urgent")
    assert limb.identity.segment.name not in steps(request_.output)
    deployer.discard("urgent")
    deployer.prune()
    assert deployer.verify() == []
    assert (request_.output / limb.identity.segment.name / "1" / "model.onnx").exists(), "an update will need it"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "trunk_00_02"},
        {"name": "limb_pairs"},
        {"name": "../limb_pairs_0123456789ab_01_02"},
        {"name": "limb_pairs_0123456789ab_01_02"},
        {"from": "_01_02", "to": "_97_98"},
        {"from": "_01_02", "to": "_00_02"},
        {"from": "_01_02", "to": "_01_٠٢"},
        {"version": 0},
    ],
)
def test_a_group_that_names_another_limb_is_broken(request_: BuildRequest, wrong: dict[str, object]) -> None:
    build_repository(replace(request_, group_heads=True))
    (path,) = request_.output.glob("heads_pairs_*/1/group.json")
    record = json.loads(path.read_text())
    if "from" in wrong:
        wrong = {"name": record["segment"]["name"].replace(wrong["from"], wrong["to"])}
    record["segment"] |= wrong
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"(group\.json is missing or broken|it holds limb_pairs.* stands on).* run build-repo"
    ):
        read_state(request_.output)
    assert build_repository(replace(request_, group_heads=True)).changed
    assert len(read_state(request_.output).groups_in_use) == 2


def test_a_limb_is_reduced_like_the_trunk(request_: BuildRequest) -> None:
    report = build_repository(replace(request_, precision=Precision(trunk="int8"), gate=GateSettings(on=False)))
    (limb,) = [name for name in report.models if name.startswith("limb_pairs_")]
    assert b"MatMulIntegerToFloat" in (request_.output / limb / "1" / "model.onnx").read_bytes()
    manifest = read_manifest(request_.output)
    assert manifest is not None
    assert manifest.models[limb].versions[1].dtype == "int8"


def test_the_fused_file_of_the_benchmarks_runs_the_limb(
    request_: BuildRequest, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """It is one file of all segments and heads; on the trunk's tap of the same number, it would give other answers."""
    build_repository(request_)
    systems = Systems(tiny_trunk, request_.output, tmp_path / "others", 32, 1)
    systems.fused(1, "fused")
    session = onnxruntime.InferenceSession(tmp_path / "others" / "files" / "fused.onnx")
    ids = np.array([[2, 6, 7, 8, 3]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (found,) = session.run(["urgent"], feeds)
    branch = load_limb(request_.limbs / "pairs").branch(tiny_trunk)
    bundle = load_bundle(request_.heads / "urgent", trunk=branch)
    input_ids, mask, types = map(torch.from_numpy, feeds.values())
    with torch.no_grad():
        state = branch.states(input_ids, types, mask, [2])[2]
        expected = ServedHead(bundle.head(branch), bundle.spec)(state, mask)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_a_new_limb_of_the_name_stands_beside_the_old(request_: BuildRequest, tiny_trunk: Trunk) -> None:
    build_repository(request_)
    old = {name for name in steps(request_.output) if name.startswith("limb_")}
    limb = random_limb(tiny_trunk, request_.limbs / "pairs", tap=1, layers=1, seed=7)
    random_head_on(limb, tiny_trunk, request_.heads, "urgent", seed=7)
    build_repository(request_)
    assert old < (both := {name for name in steps(request_.output) if name.startswith("limb_")})
    assert len(both) == 2, "old and new side by side"
    (kept,) = request_.limbs.glob("pairs@*")
    shutil.rmtree(kept)
    with pytest.raises(UserError, match=r"polite: it stands on limb pairs-1\+1@.* now: train the head again"):
        build_repository(request_)
    random_head_on(limb, tiny_trunk, request_.heads, "polite", seed=7)
    report = build_repository(request_)
    new = {name for name in steps(request_.output) if name.startswith("limb_")}
    assert len(new) == 1
    assert not new & old
    assert {report.models[name] for name in old} == {"removed"}


@pytest.mark.parametrize("place", ["beside the heads", "in the working folder"])
def test_limbs_are_found_without_being_named(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Heads that were fetched into another folder have none beside them."""
    if place == "in the working folder":
        (tmp_path / "fetched").mkdir()
        request_.heads.rename(tmp_path / "fetched" / "heads")
        request_ = replace(request_, heads=tmp_path / "fetched" / "heads")
        monkeypatch.chdir(tmp_path)
    report = build_repository(replace(request_, limbs=None))
    assert [name for name in report.models if name.startswith("limb_pairs_")]


def test_a_missing_limb_is_told_with_its_option(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it stands on limb pairs-1\+1@.*: give --limbs FOLDER"):
        build_repository(replace(request_, limbs=tmp_path / "nowhere"))
    assert not (request_.output / "manifest.json").exists()
