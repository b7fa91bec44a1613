"""Heads deployed into a repository of int8: made in its precision, judged where they can be, proved by their files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.deploy import Deployer
from onetrunk.deploy.change import HeadChange
from onetrunk.deploy.proof import ProofError, check_answers
from onetrunk.export import quantization
from onetrunk.export.errors import GateError
from onetrunk.export.runtime import Runtime
from onetrunk.export.sessions import asks_for_bf16
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.manifest import FP32, GateRule, Precision, read_manifest
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.gate_settings import GateOverrides, GateSettings
from onetrunk.repository.state import HeadVersion, read_state

KEY = "a-key"


@pytest.fixture
def repository(int8_repository):
    """The tiny heads in int8."""
    return int8_repository


@pytest.fixture
def judged(repository, tiny_trunk_folder, tmp_path):
    """A deployer that finds dev data for the task mood."""
    lines = [
        json.dumps({"sentence": f"{word} film was {label}", "label": label})
        for word in ("the", "a", "no", "great", "poor")
        for label in ("good", "bad")
    ]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    (tmp_path / "mood.toml").write_text('labels = ["bad", "good"]\ntrain = "dev.jsonl"\ndev = "dev.jsonl"\n')

    def make(max_loss):
        gate = GateOverrides(max_loss=max_loss, task_dir=tmp_path)
        return Deployer(repository, url=None, trunk=tiny_trunk_folder, gate=gate)

    return make


def precision_of(repository, model):
    text = (repository / model / "config.pbtxt").read_text()
    return parameters_of(text_format.Parse(text, pb.ModelConfig()))["precision"]


def test_head_gets_the_precision_of_its_repository(deployer, repository, bundle):
    with_rule(repository, GateRule())
    report = deployer.deploy(bundle())
    path = repository / "head_mood/2/model.onnx"
    assert b"MatMulIntegerToFloat" in path.read_bytes()
    assert precision_of(repository, "head_mood") == "int8"
    assert read_manifest(repository).models["head_mood"].versions[2].dtype == "int8"
    assert "what it loses by int8 is not known: task mood: no dev data" in report.notes[0]
    assert deployer.verify() == []


def test_head_of_a_repository_in_bf16_asks_for_it(deployer, repository, bundle, tiny_heads, tiny_trunk_folder):
    bf16 = {"precision": Precision(trunk="bf16", heads="bf16"), "gate": GateSettings(on=False)}
    build_repository(BuildRequest(output=repository, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, **bf16))
    deployer.deploy(bundle())
    assert asks_for_bf16(onnx.load(repository / "head_mood/3/model.onnx"))
    assert precision_of(repository, "head_mood") == "bf16"
    assert deployer.verify() == []


def test_segment_of_a_new_tap_gets_it_too(deployer, repository, bundle):
    deployer.deploy(bundle(tap=2))
    assert precision_of(repository, "trunk_01_02") == "int8"
    assert deployer.verify() == []


def test_dev_data_tell_what_it_loses(judged, bundle):
    report = judged(100).deploy(bundle())
    assert report.notes[0].startswith("accuracy over 10 dev rows: ")


def with_rule(repository, rule):
    """The repository as a build by this rule leaves it."""
    manifest = read_manifest(repository).model_copy(update={"gate_rule": rule})
    (repository / "manifest.json").write_text(manifest.text())


def test_what_a_build_went_by_is_in_the_manifest(repository):
    assert read_manifest(repository).gate_rule == GateRule(on=False)


def test_built_without_the_gate_nothing_is_judged(judged, repository, bundle):
    (note,) = judged(None).deploy(bundle()).notes
    assert note.endswith("the repository was built with --gate off; give --max-loss to judge this head")
    assert read_manifest(repository).gate == {}


def test_repositorys_own_rule_judges(judged, repository, bundle):
    with_rule(repository, GateRule(max_loss=-100.1, rows=6))
    with pytest.raises(GateError, match=r"allowed is -100\.1"):
        judged(None).deploy(bundle())
    assert judged(100).deploy(bundle()).notes[0].startswith("accuracy over 6 dev rows: ")
    assert read_manifest(repository).gate_rule == GateRule(max_loss=-100.1, rows=6)


def test_a_release_whose_runtime_cannot_be_had_is_no_obstacle(judged, repository, bundle, monkeypatch):
    with_rule(repository, GateRule(max_loss=100, runtime="release"))

    def offline(runtime, progress):
        if runtime != Runtime():
            raise OneTrunkError("no network")

    monkeypatch.setattr(Runtime, "fetch", offline)
    notes = judged(None).deploy(bundle()).notes
    assert "measured by the ONNX Runtime that is installed, and not by the release's: no network" in notes
    [result] = read_manifest(repository).gate.values()
    assert result.measured_by == Runtime().measured_by(Precision(trunk="int8", heads="int8"))
    assert read_manifest(repository).gate_rule.runtime == "release"


def test_next_build_knows_what_a_deployment_found(judged, repository, tiny_heads, tiny_trunk_folder, bundle, tmp_path):
    judged(100).deploy(bundle())
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.copytree(bundle(), heads / "mood", dirs_exist_ok=True)
    settings = {"heads": heads, "trunk": tiny_trunk_folder, "max_length": 32, "gate": GateSettings(on=False)}
    report = build_repository(
        BuildRequest(output=repository, **settings, precision=read_manifest(repository).precision, dry_run=True)
    )
    assert report.gate == {"mood": read_manifest(repository).gate["mood"]}


def test_head_that_loses_too_much_is_refused(judged, repository, bundle, monkeypatch):
    before = (repository / "manifest.json").read_bytes()
    monkeypatch.setattr(quantization, "_HIGHEST", 1)
    # Whatever way its answers turn: below nought no head can stay.
    with pytest.raises(GateError, match="nothing was published: train it better, or allow more by --max-loss"):
        judged(-100.1).deploy(bundle())
    assert (repository / "manifest.json").read_bytes() == before


def test_version_of_before_keeps_its_own_precision(deployer, repository, tiny_heads, tiny_trunk_folder, bundle):
    build_repository(BuildRequest(output=repository, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32))
    assert precision_of(repository, "head_mood") == "fp32"
    deployer.rollback("mood")
    assert precision_of(repository, "head_mood") == "int8"
    assert deployer.verify() == []


def test_numbers_may_be_off_by_a_share_of_their_range(repository):
    state = read_state(repository)
    heads = {task: state.heads[task] for task in ("grade", "mood")}
    wide = heads["grade"].spec(1).model_copy(update={"range": (0.0, 100.0)})
    heads["grade"] = replace(heads["grade"], versions={1: HeadVersion(wide, "int8")})
    state = replace(state, heads=heads)
    allowed = HeadChange("mood", state, state).allowed
    assert set(allowed.specs) == {"grade", "grade_candidate", "mood", "mood_candidate"}
    answers = {"grade": np.array([[50.0]], dtype=np.float32)}
    check_answers(answers, {"grade": answers["grade"] + 1.9}, allowed)
    with pytest.raises(
        ProofError, match=r"grade: the server's answers are 2\.1e-02 from those expected; allowed is 2e-02"
    ):
        check_answers(answers, {"grade": answers["grade"] + 2.1}, allowed)
    versions = {task: {1: HeadVersion(head.spec(1), "fp32")} for task, head in heads.items()}
    heads = {task: replace(head, versions=versions[task]) for task, head in heads.items()}
    fp32 = replace(state, precision=FP32, heads=heads)
    assert HeadChange("mood", fp32, fp32).allowed.tolerance == 1e-4
