"""Heads of one tap in one model: what is served by it, by what it is replaced, and that it answers as its heads do."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from onetrunk.cli.build_repo import build_repo
from onetrunk.deploy import Deployer
from onetrunk.export import merge, parity
from onetrunk.export.errors import ExportError
from onetrunk.export.exported_head import HEAD_ONNX
from onetrunk.export.merge import fits_group, merge_models
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import read_manifest
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.versions import read_group


def config(repository, model):
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def steps(repository, ensemble="multitask"):
    """Part -> the outputs that it gives to the ensemble."""
    found = config(repository, ensemble).ensemble_scheduling.step
    return {step.model_name: set(step.output_map) for step in found if step.model_name.startswith("head")}


@pytest.fixture(scope="module")
def built(tiny_heads, tiny_trunk_folder, tmp_path_factory):
    """grade and mood stand on tap 3; match and topic have taps of their own."""
    output = tmp_path_factory.mktemp("grouped") / "repository"
    build_repository(
        BuildRequest(output=output, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, group_heads=True)
    )
    return output


@pytest.fixture
def repository(built, tmp_path):
    return shutil.copytree(built, tmp_path / "repository")


@pytest.fixture
def build(tiny_heads, tiny_trunk_folder, repository):
    def run(**changes):
        settings = {"heads": tiny_heads, "trunk": tiny_trunk_folder, "max_length": 32, "group_heads": True, **changes}
        return build_repository(BuildRequest(output=repository, **settings))

    return run


@pytest.fixture
def deployer(repository, tiny_trunk_folder):
    return Deployer(repository, url=None, trunk=tiny_trunk_folder)


@pytest.fixture
def update(tiny_heads, tiny_trunk, tmp_path):
    """A bundle of a task with another output bias."""

    def make(task, shift=1.0):
        bundle = load_bundle(tiny_heads / task)
        head = bundle.head(tiny_trunk)
        head.output.bias.data[0] += shift
        save_bundle(tmp_path / "new" / task, bundle.spec, head)
        return tmp_path / "new" / task

    return make


def test_one_model_answers_for_the_heads_of_a_tap(repository):
    for ensemble in ("multitask", "multitask_tokens"):
        expected = {"heads_03": {"grade", "mood"}, "head_match": {"match"}, "head_topic": {"topic"}}
        assert steps(repository, ensemble) == expected
    group = read_group(repository / "heads_03" / "1")
    assert {task: member.version for task, member in group.heads.items()} == {"grade": 1, "mood": 1}
    assert config(repository, "heads_03").parameters["heads"].string_value == "grade:1,mood:1"


def test_what_clients_see_is_the_same_as_without_groups(repository, tiny_repository):
    for ensemble in ("multitask", "multitask_tokens"):
        grouped, separate = config(repository, ensemble), config(tiny_repository, ensemble)
        assert list(grouped.output) == list(separate.output)
        assert list(grouped.input) == list(separate.input)
        assert grouped.parameters["onetrunk"] == separate.parameters["onetrunk"]


@pytest.mark.parametrize("wanted", [["grade"], ["mood"], ["grade", "mood"]])
def test_a_group_answers_bit_for_bit_as_its_heads(repository, wanted):
    generator = np.random.default_rng(1)
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8])
    feeds = {"hidden_state": generator.normal(size=(3, 9, 32)).astype(np.float32), "attention_mask": mask}
    group = onnxruntime.InferenceSession(repository / "heads_03/1/model.onnx")
    together = dict(zip(wanted, group.run(wanted, feeds), strict=True))
    for task in wanted:
        alone = onnxruntime.InferenceSession(repository / f"head_{task}/1/model.onnx").run(None, feeds)[0]
        np.testing.assert_array_equal(together[task], alone)


def test_second_build_writes_nothing_and_one_without_the_flag_takes_the_group_away(build, repository):
    assert not build().changed
    report = build(group_heads=False)
    assert report.removed == ("heads_03",)
    assert "heads_03" not in steps(repository)
    assert all("kept" in state for model, state in report.models.items() if model != "heads_03")


def test_grouping_an_existing_repository_exports_no_head_anew(build, repository):
    build(group_heads=False)
    report = build()
    assert {name for name, state in report.models.items() if "new" in state} == {"heads_03"}
    assert not [name for name in report.written if name.endswith("model.onnx") and not name.startswith("heads_03")]


def test_an_updated_head_leaves_the_group_and_a_rollback_goes_back(deployer, repository, update):
    deployer.deploy(update("mood"))
    assert steps(repository)["heads_03"] == {"grade"}
    assert steps(repository)["head_mood"] == {"mood"}
    deployer.rollback("mood")
    assert steps(repository)["heads_03"] == {"grade", "mood"}
    assert "head_mood" not in steps(repository)
    assert deployer.verify() == []


def test_a_group_of_which_no_head_is_served_rests_until_a_rollback(deployer, repository, update):
    deployer.deploy(update("mood"))
    deployer.deploy(update("grade"))
    assert "heads_03" not in steps(repository)
    assert read_manifest(repository).models["heads_03"].served is None
    deployer.rollback("grade")
    assert steps(repository)["heads_03"] == {"grade"}
    assert deployer.verify() == []


def test_removed_task_and_candidate(deployer, repository, update):
    deployer.remove("grade")
    assert steps(repository)["heads_03"] == {"mood"}
    deployer.candidate(update("mood", 2.0))
    assert steps(repository, "candidate_mood") == {"head_mood": {"mood"}}
    assert tuple(config(repository, "head_mood").version_policy.specific.versions) == (1, 2)
    deployer.promote("mood")
    assert "heads_03" not in steps(repository)
    deployer.rollback("grade")
    assert steps(repository)["heads_03"] == {"grade"}
    assert deployer.verify() == []


def test_prune_takes_a_group_that_answers_for_nobody(deployer, repository, update):
    for task in ("mood", "grade"):
        deployer.deploy(update(task))
    assert "heads_03" in deployer.prune(1).removed
    assert not (repository / "heads_03").exists()
    assert deployer.verify() == []
    # What is left is built upon as ever.
    deployer.deploy(update("mood", 3.0))
    assert deployer.verify() == []


def test_a_pruned_task_that_comes_back_is_not_mistaken_for_the_one_in_the_group(deployer, repository, update):
    deployer.remove("mood")
    deployer.prune(1)
    assert not (repository / "head_mood").exists()
    deployer.deploy(update("mood"))
    assert steps(repository)["heads_03"] == {"grade"}
    assert steps(repository)["head_mood"] == {"mood"}
    assert read_manifest(repository).models["head_mood"].served == 2


def test_next_build_folds_the_update_into_a_new_version_of_the_group(build, deployer, repository, update, tiny_heads):
    deployer.deploy(update("mood"))
    heads = repository.parent / "heads"
    shutil.copytree(tiny_heads, heads)
    shutil.rmtree(heads / "mood")
    shutil.copytree(update("mood"), heads / "mood")
    report = build(heads=heads)
    assert report.models["heads_03"] == "version 2, new"
    assert report.models["head_mood"] == "version 2, kept"
    assert steps(repository)["heads_03"] == {"grade", "mood"}


def test_group_that_answers_otherwise_is_not_published(build, repository, monkeypatch):
    build(group_heads=False)
    before = (repository / "manifest.json").read_bytes()
    real = parity._run

    def wrong(session, model, *args):
        return real(session, model, *args) + (0.01 if model == "heads_03" else 0.0)

    monkeypatch.setattr(parity, "_run", wrong)
    with pytest.raises(OneTrunkError, match="heads_03"):
        build()
    assert (repository / "manifest.json").read_bytes() == before
    assert not (repository / "heads_03").exists()


def test_broken_record_of_a_group_is_told(repository):
    (repository / "heads_03/1/group.json").write_text("{}")
    with pytest.raises(UserError, match=r"heads_03/1/group\.json"):
        Deployer(repository, url=None).tasks()


@pytest.mark.parametrize("broken", ["{}", "no JSON", None])
def test_broken_record_of_a_group_that_nobody_uses_stops_nothing(build, deployer, repository, update, broken):
    for task in ("mood", "grade"):
        deployer.deploy(update(task))
    record = repository / "heads_03/1/group.json"
    record.unlink()
    if broken:
        record.write_text(broken)
    report = deployer.deploy(update("mood", 2.0))
    assert report.to_version == 3
    (note,) = report.notes
    assert note.startswith(f"heads_03 answers for no task and is left out: {record} is missing or broken")
    deployer.rollback("mood", to=1)
    assert steps(repository)["head_mood"] == {"mood"}
    assert build().models["heads_03"] == "version 2, new"


def test_a_build_makes_a_group_anew_whose_record_is_broken(build, repository):
    (repository / "heads_03/1/group.json").write_text("{}")
    assert build().models["heads_03"] == "version 2, new"


def test_dry_run_and_json(tiny_heads, tiny_trunk_folder, tmp_path):
    args = ["--tasks", "all", "--heads", str(tiny_heads), "--trunk", str(tiny_trunk_folder), "--max-length", "32"]
    args += ["--output", str(tmp_path / "new"), "--group-heads", "--dry-run", "--json"]
    result = CliRunner().invoke(build_repo, args)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["models"]["heads_03"] == "version 1, new"
    assert not (tmp_path / "new").exists()


def test_heads_too_large_for_one_file_are_refused(build, repository, monkeypatch):
    build(group_heads=False)
    before = (repository / "manifest.json").read_bytes()
    monkeypatch.setattr(merge, "_MAX_BYTES", 10_000)
    with pytest.raises(UserError, match=r"the 2 heads of tap 3 have .* GB together, .*: build without --group-heads"):
        build()
    assert (repository / "manifest.json").read_bytes() == before


def test_nothing_to_group_is_told(build):
    (note,) = build(tasks=["mood", "match"], dry_run=True).notes
    assert note.startswith("--group-heads found nothing to group: no tap has two heads")
    assert build(tasks=["mood", "grade"], dry_run=True).notes == ()


def test_files_of_different_operator_sets_are_not_put_together(repository, tmp_path):
    import onnx

    ours = onnx.load(repository / "head_mood/1/model.onnx")
    theirs = onnx.load(repository / "head_grade/1/model.onnx")
    theirs.opset_import[0].version += 1
    onnx.save(theirs, tmp_path / HEAD_ONNX)
    assert fits_group(repository / "head_mood/1/model.onnx")
    assert not fits_group(tmp_path / HEAD_ONNX)
    with pytest.raises(ExportError, match="operator set"):
        merge_models({"mood": ours, "grade": theirs}, ["mood", "grade"], "group")
    with pytest.raises(ExportError, match="no part has the output rte"):
        merge_models({"mood": ours}, ["rte"], "group")
