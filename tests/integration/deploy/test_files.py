"""Deployments without a server: what stands on disk after each, and what is refused before anything is touched."""

import dataclasses
import json
import os
import shutil

import pytest
from google.protobuf import text_format
from safetensors.torch import load_file, save_file
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.deploy import Deployer
from onetrunk.deploy.history import list_tasks
from onetrunk.export.errors import ParityError
from onetrunk.protocol import transaction
from onetrunk.protocol.ensemble_info import read_ensemble_info
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import read_manifest
from onetrunk.protocol.traffic_split import CandidateInfo, TrafficSplit
from onetrunk.repository import BuildRequest, artifacts, build_repository
from onetrunk.repository.state import read_state
from onetrunk.repository.transaction import locked
from onetrunk.serving.repository import read_repository
from tests.fixtures.stand_ins import stand_in


def pinned(repository, task, ensemble="multitask"):
    tasks = json.loads(read_config(repository, ensemble).parameters["onetrunk"].string_value)["tasks"]
    return tasks[task]["version"] if task in tasks else None


def read_config(repository, model):
    from onetrunk.serving.repository import read_config

    return read_config(repository, model, model)


def loaded(repository, task):
    return tuple(read_config(repository, f"head_{task}").version_policy.specific.versions)


def test_update_pins_the_next_version_and_keeps_the_one_before(deployer, repository, bundle, visible):
    before = visible(repository)
    report = deployer.deploy(bundle())
    assert (report.task, report.from_version, report.to_version) == ("mood", 1, 2)
    for ensemble in ("multitask", "multitask_tokens"):
        assert pinned(repository, "mood", ensemble) == 2
        assert pinned(repository, "grade", ensemble) == 1
    assert loaded(repository, "mood") == (1, 2)
    after = visible(repository)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == set(report.written)
    assert {name.split("/")[0] for name in changed} == {"head_mood", "multitask", "multitask_tokens", "manifest.json"}
    assert before.keys() <= after.keys()
    assert deployer.verify() == []


def test_third_version_lets_go_of_the_first(deployer, repository, bundle):
    deployer.deploy(bundle(shift=1.0))
    deployer.deploy(bundle(shift=2.0))
    assert loaded(repository, "mood") == (2, 3)
    assert pinned(repository, "mood") == 3
    assert (repository / "head_mood/1/model.onnx").exists()
    assert deployer.verify() == []


def test_new_task(deployer, repository, bundle):
    report = deployer.deploy(bundle(task="urgent"))
    assert (report.from_version, report.to_version) == (None, 1)
    assert "urgent" in read_repository(repository).tasks
    assert (repository / "multitask/labels_urgent.txt").read_text() == "bad\ngood\n"
    assert deployer.verify() == []


def test_same_head_again_does_nothing(deployer, repository, bundle, visible):
    path = bundle()
    deployer.deploy(path)
    before = visible(repository)
    assert not deployer.deploy(path).changed
    assert visible(repository) == before


def test_head_that_was_served_before_gets_no_new_version(deployer, repository, bundle, tiny_heads):
    deployer.deploy(bundle())
    report = deployer.deploy(tiny_heads / "mood")
    assert (report.from_version, report.to_version) == (2, 1)
    assert not any(name.endswith(".onnx") for name in report.written)


def test_rollback_writes_configs_only_and_is_the_old_repository(deployer, repository, bundle, chain):
    before = chain(repository, "multitask")
    deployer.deploy(bundle())
    report = deployer.rollback("mood")
    assert {name.rsplit("/")[-1] for name in report.written} == {"config.pbtxt", "manifest.json"}
    assert chain(repository, "multitask") == before
    assert deployer.verify() == []


def test_rollback_to_a_version_that_is_not_loaded(deployer, repository, bundle):
    for shift in (1.0, 2.0, 3.0):
        deployer.deploy(bundle(shift=shift))
    deployer.rollback("mood", to=1)
    assert pinned(repository, "mood") == 1
    assert loaded(repository, "mood") == (1, 4)
    deployer.rollback("mood")
    assert pinned(repository, "mood") == 4


def test_head_on_a_tap_that_no_segment_ends_at(deployer, repository, bundle):
    report = deployer.deploy(bundle(tap=2, layers=1))
    assert {"trunk_01_02/1/model.onnx", "trunk_02_03/1/model.onnx"} <= set(report.written)
    assert {"trunk_01_02", "trunk_02_03"} <= read_repository(repository).models
    assert "trunk_01_03" not in read_repository(repository).models
    assert deployer.verify() == []
    deployer.rollback("mood")
    assert deployer.verify() == []
    assert pinned(repository, "mood") == 1


def test_rollback_to_what_is_served_does_nothing(deployer, repository, bundle):
    deployer.deploy(bundle())
    assert not deployer.rollback("mood", to=2).changed
    assert loaded(repository, "mood") == (1, 2)


def test_removed_task_comes_back_by_rollback(deployer, repository, chain):
    before = chain(repository, "multitask")
    deployer.remove("mood")
    assert "mood" not in read_repository(repository).tasks
    assert "head_mood" not in read_repository(repository).models
    assert deployer.verify() == []
    deployer.rollback("mood")
    assert chain(repository, "multitask") == before
    assert deployer.verify() == []


def test_candidate_leaves_what_is_live_untouched_until_it_is_promoted(deployer, repository, bundle, visible):
    live = ("multitask", "multitask_tokens")
    before = {name: digest for name, digest in visible(repository).items() if name.startswith(live)}
    report = deployer.candidate(bundle(folder="mood_new"))
    assert (report.task, report.to_version) == ("mood", 2)
    assert {name: digest for name, digest in visible(repository).items() if name.startswith(live)} == before
    tried = read_config(repository, "candidate_mood")
    assert [output.name for output in tried.output] == ["mood", "mood_candidate", "truncated", "token_count"]
    assert [step.model_version for step in tried.ensemble_scheduling.step if step.model_name == "head_mood"] == [1, 2]
    assert deployer.verify() == []
    deployer.promote()
    assert pinned(repository, "mood") == 2
    assert not (repository / "candidate_mood").exists()
    assert deployer.verify() == []


def test_discarded_candidate_is_gone(deployer, repository, bundle, chain):
    before = chain(repository, "multitask")
    deployer.candidate(bundle())
    deployer.discard("mood")
    assert not (repository / "candidate_mood").exists()
    assert loaded(repository, "mood") == (1,)
    assert chain(repository, "multitask") == before
    assert deployer.verify() == []


def test_candidate_of_a_task_that_is_not_served_yet(deployer, repository, bundle):
    deployer.candidate(bundle(task="urgent", tap=2))
    assert [output.name for output in read_config(repository, "candidate_urgent").output] == [
        "urgent_candidate", "truncated", "token_count"
    ]  # fmt: skip
    assert "urgent" not in read_repository(repository).tasks
    deployer.promote("urgent")
    assert "urgent" in read_repository(repository).tasks
    assert deployer.verify() == []


@pytest.mark.parametrize("tap", [0, 3])
def test_candidate_on_a_tap_that_nobody_is_served_from_leaves_the_live_chain_alone(
    deployer, repository, bundle, chain, tap
):
    for task in ("grade", "topic", "mood"):
        deployer.remove(task)
    before = chain(repository, "multitask")
    deployer.candidate(bundle(task="urgent", tap=tap, layers=1))
    assert chain(repository, "multitask").keys() == before.keys(), "Triton refuses a step that nothing reads"
    assert {step.model_name for step in read_config(repository, "candidate_urgent").ensemble_scheduling.step} >= {
        "head_urgent", "trunk_00_00" if tap == 0 else "trunk_01_03"
    }  # fmt: skip
    assert deployer.verify() == []


def test_rollback_goes_to_what_was_served_and_to_nothing_else(deployer, repository, bundle):
    deployer.deploy(bundle(shift=1.0))
    deployer.candidate(bundle(shift=2.0))
    deployer.discard()
    deployer.rollback("mood")
    assert pinned(repository, "mood") == 1
    deployer.rollback("mood")
    assert pinned(repository, "mood") == 2
    deployer.remove("mood")
    deployer.rollback("mood")
    assert pinned(repository, "mood") == 2, "not version 3, which was never live"


def test_prune_keeps_what_a_rollback_goes_to(deployer, repository, bundle):
    deployer.deploy(bundle(shift=1.0, tap=2))
    deployer.candidate(bundle(shift=2.0))
    deployer.discard()
    deployer.rollback("mood")
    deployer.prune(keep=2)
    assert sorted(path.name for path in (repository / "head_mood").iterdir() if path.is_dir()) == ["1", "2"]
    report = deployer.rollback("mood")
    assert not any(name.endswith(".onnx") for name in report.written)
    assert deployer.verify() == []


def test_rollback_does_not_change_what_a_name_means(
    deployer, repository, bundle, tiny_heads, tiny_trunk_folder, tmp_path
):
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.rmtree(heads / "mood")
    shutil.copytree(bundle(labels=("good", "bad")), heads / "mood")
    build_repository(BuildRequest(output=repository, heads=heads, trunk=tiny_trunk_folder, max_length=32))
    with pytest.raises(UserError, match="version 1: task mood is taken by a head with labels good, bad, in this order"):
        deployer.rollback("mood")


def test_old_version_that_is_damaged_stands_in_nobodys_way(deployer, repository, bundle):
    deployer.deploy(bundle())
    (repository / "head_mood/1/head.json").write_text("{")
    report = deployer.remove("grade")
    assert any(line.startswith("head_mood/config.pbtxt: rewritten") for line in report.settled)
    assert loaded(repository, "mood") == (2,)
    with pytest.raises(UserError, match="no earlier version"):
        deployer.rollback("mood")


@pytest.mark.parametrize("field", ["range", "scores"])
def test_number_that_is_not_finite_is_refused(deployer, repository, bundle, visible, field):
    path, before = bundle(like="grade"), visible(repository)
    text = json.loads((path / "head.json").read_text())
    text[field] = [0.0, float("inf")] if field == "range" else {"pearson": float("nan")}
    (path / "head.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="finite"):
        deployer.deploy(path)
    assert visible(repository) == before


def test_folder_is_not_made_for_a_typo(tmp_path, bundle):
    with pytest.raises(UserError, match="no repository here"):
        Deployer(tmp_path / "typo", url=None).rollback("mood")
    assert not (tmp_path / "typo").exists()


def test_discarded_candidate_of_a_new_task_leaves_nothing_that_is_served(deployer, repository, bundle, chain):
    before = chain(repository, "multitask")
    deployer.candidate(bundle(task="urgent", tap=2))
    deployer.discard()
    assert "head_urgent" not in read_repository(repository).models
    assert chain(repository, "multitask")["settings"] == before["settings"]
    assert deployer.verify() == []
    deployer.prune()
    assert not (repository / "head_urgent").exists()
    assert deployer.verify() == []


def test_update_while_a_candidate_is_tried(deployer, repository, bundle):
    deployer.candidate(bundle(shift=1.0))
    deployer.deploy(bundle(shift=2.0))
    assert pinned(repository, "mood") == 3
    assert loaded(repository, "mood") == (1, 2, 3)
    assert deployer.verify() == []
    deployer.deploy(bundle(shift=1.0))
    assert pinned(repository, "mood") == 2, "the candidate's own bundle makes it live"
    assert not (repository / "candidate_mood").exists()
    assert deployer.verify() == []


def test_build_drops_an_old_version_that_is_damaged(
    deployer, repository, bundle, tiny_heads, tiny_trunk_folder, tmp_path
):
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.rmtree(heads / "mood")
    shutil.copytree(bundle(), heads / "mood")
    deployer.deploy(heads / "mood")
    (repository / "head_mood/1/model.onnx").write_bytes(b"damaged")
    build_repository(BuildRequest(output=repository, heads=heads, trunk=tiny_trunk_folder, max_length=32))
    assert loaded(repository, "mood") == (2,), "a server that starts would stumble over it"


def test_prune_deletes_what_is_of_no_use(deployer, repository, bundle):
    for shift in (1.0, 2.0, 3.0):
        deployer.deploy(bundle(shift=shift))
    deployer.remove("topic")
    planned = deployer.prune(keep=2, dry_run=True)
    report = deployer.prune(keep=2)
    assert set(planned.removed) == set(report.removed) == {
        "head_mood/1", "head_mood/2", "head_topic", "trunk_00_00"
    }  # fmt: skip
    assert sorted(path.name for path in (repository / "head_mood").iterdir() if path.is_dir()) == ["3", "4"]
    assert deployer.verify() == []
    deployer.prune(keep=1)
    assert loaded(repository, "mood") == (4,)
    assert deployer.verify() == []
    assert not deployer.prune(keep=1).changed


@pytest.mark.parametrize("action", ["deploy", "candidate", "rollback", "remove", "prune"])
def test_dry_run_writes_nothing_and_says_what_would_be(deployer, repository, bundle, visible, action):
    deployer.deploy(bundle(shift=1.0))
    calls = {
        "deploy": lambda **how: deployer.deploy(bundle(shift=2.0), **how),
        "candidate": lambda **how: deployer.candidate(bundle(shift=2.0), **how),
        "rollback": lambda **how: deployer.rollback("mood", **how),
        "remove": lambda **how: deployer.remove("mood", **how),
        "prune": lambda **how: deployer.prune(1, **how),
    }
    before = visible(repository)
    planned = calls[action](dry_run=True)
    assert visible(repository) == before
    done = calls[action]()
    assert set(done.written) - {"manifest.json"} == set(planned.written)
    assert planned.removed == done.removed
    if action == "rollback":
        assert "-    model_version: 2\n+    model_version: 1\n" in planned.diff


def test_every_deployment_is_in_the_log(deployer, repository, bundle, log_of):
    path = bundle()
    deployer.deploy(path)
    deployer.rollback("mood")
    lines = log_of(repository)
    assert [(line["action"], line["result"], line["from"], line["to"]) for line in lines] == [
        ("deploy", "begun", 1, 2), ("deploy", "done", 1, 2), ("rollback", "begun", 2, 1), ("rollback", "done", 2, 1)
    ]  # fmt: skip
    assert "@" in lines[0]["who"]
    manifest = read_manifest(repository)
    assert lines[1]["hashes"] == manifest.models["head_mood"].versions[2].files
    rows = {row.task: row for row in deployer.tasks()}
    assert rows["mood"].since == lines[3]["time"]
    assert (rows["mood"].served, rows["mood"].versions, rows["mood"].loaded) == (1, (1, 2), (1, 2))


def test_list_has_dev_scores(deployer, bundle):
    deployer.deploy(bundle(scores={"accuracy": 0.75}))
    row = next(row for row in deployer.tasks() if row.task == "mood")
    assert (row.metric, row.score, row.tap) == ("accuracy", 0.75, 3)


def spoil_weights(path):
    (path / "head.safetensors").write_bytes(b"no weights")


def put_nan(path):
    weights = load_file(path / "head.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, path / "head.safetensors")


def cut_head_json(path):
    (path / "head.json").write_text((path / "head.json").read_text()[:40])


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({"trunk": "bert-6x384@ffffffffffff"}, None, "trained on trunk bert-6x384@ffffffffffff"),
        ({"labels": ("good", "bad")}, None, "taken by a head with labels bad, good, in this order"),
        ({"labels": ("bad", "better")}, None, "taken by a head with labels bad, good, this one has bad, better"),
        ({"form": "pair"}, None, "taken by a head with form single, this one has pair"),
        ({"task": "truncated"}, None, "is the name of a tensor"),
        ({"task": "hidden_03"}, None, "is the name of a tensor"),
        ({"tap": 9}, None, "tap 9 is not on this trunk"),
        ({}, spoil_weights, "head.safetensors is broken"),
        ({}, put_nan, "contains NaN or infinity"),
        ({}, cut_head_json, "is not JSON"),
        ({}, shutil.rmtree, "no such folder"),
    ],
)
def test_bad_head_is_refused_and_nothing_is_touched(deployer, repository, bundle, visible, changes, spoil, message):
    path = bundle(**{key: value for key, value in changes.items() if key != "tap"})
    if "tap" in changes:
        text = json.loads((path / "head.json").read_text())
        (path / "head.json").write_text(json.dumps({**text, "tap": changes["tap"]}))
    if spoil:
        spoil(path)
    before = visible(repository)
    for method in (deployer.deploy, deployer.candidate):
        with pytest.raises(UserError, match=message):
            method(path)
    assert visible(repository) == before
    assert deployer.verify() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.rollback("mood"), "task mood has no earlier version on disk; there are: 1"),
        (lambda d: d.rollback("mood", to=7), "task mood has no version 7 on disk; there are: 1"),
        (lambda d: d.rollback("moot"), "did you mean mood.*; there are: grade, match, mood, topic"),
        (lambda d: d.remove("moot"), "no task 'moot'"),
        (lambda d: d.promote(), "no candidate is being tried: deploy-head --candidate BUNDLE first"),
        (lambda d: d.discard("mood"), "no candidate is being tried: deploy-head --candidate BUNDLE first"),
        (lambda d: d.prune(0), "--keep 0: at least 1"),
        (lambda d: d.sync(), "leave --offline out"),
    ],
)
def test_what_cannot_be_is_refused(deployer, repository, visible, call, message):
    before = visible(repository)
    with pytest.raises(UserError, match=message):
        call(deployer)
    assert visible(repository) == before


def test_last_task_is_not_removed(deployer):
    for task in ("grade", "match", "topic"):
        deployer.remove(task)
    with pytest.raises(UserError, match="the only one that is served"):
        deployer.remove("mood")
    with pytest.raises(UserError, match="is not served: it was removed before"):
        deployer.remove("grade")


def test_candidate_stands_in_the_way_of_others(deployer, repository, bundle, tiny_heads, tiny_trunk_folder):
    deployer.candidate(bundle(shift=1.0))
    with pytest.raises(UserError, match="has a candidate already, version 2"):
        deployer.candidate(bundle(shift=2.0))
    with pytest.raises(UserError, match="--discard or --promote it first"):
        deployer.remove("mood")
    with pytest.raises(UserError, match="version 2 of mood is the candidate"):
        deployer.rollback("mood", to=2)
    with pytest.raises(UserError, match="a candidate of mood is being tried, which a build would end"):
        build_repository(BuildRequest(output=repository, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32))


def test_damaged_version_is_not_gone_back_to(deployer, repository, bundle):
    deployer.deploy(bundle())
    (repository / "head_mood/1/model.onnx").write_bytes(b"damaged")
    with pytest.raises(UserError, match="version 1 of mood is not as it was written"):
        deployer.rollback("mood")
    assert deployer.verify() == ["head_mood/1/model.onnx: is not as it was written"]


def test_verify_tells_what_differs(deployer, repository):
    (repository / "head_mood/config.pbtxt").write_text("changed")
    (repository / "head_topic/1/model.onnx").unlink()
    (repository / "head_grade/5").mkdir()
    (repository / "stray").mkdir()
    assert deployer.verify() == [
        "head_grade/5/: is not in the manifest",
        "head_mood/config.pbtxt: is not as it was written",
        "head_topic/1/model.onnx: is missing",
        "stray/: is not in the manifest",
    ]
    report = deployer.remove("grade")
    assert report.settled == ("head_mood/config.pbtxt: rewritten, as it did not match the manifest",)
    assert deployer.verify() == [
        "head_grade/5/: is not in the manifest",
        "head_topic/1/model.onnx: is missing",
        "stray/: is not in the manifest",
    ]


def test_build_after_deployments_keeps_them_where_the_bundles_are_the_same(
    deployer, repository, bundle, tiny_heads, tiny_trunk_folder, tmp_path, visible
):
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.rmtree(heads / "mood")
    shutil.copytree(bundle(), heads / "mood")
    deployer.deploy(heads / "mood")
    before = visible(repository)
    assert not build_repository(
        BuildRequest(output=repository, heads=heads, trunk=tiny_trunk_folder, max_length=32)
    ).changed
    assert visible(repository) == before
    deployer.rollback("mood")
    report = build_repository(BuildRequest(output=repository, heads=heads, trunk=tiny_trunk_folder, max_length=32))
    assert report.models["head_mood"] == "version 2, kept"
    assert pinned(repository, "mood") == 2
    assert deployer.verify() == []


def test_failed_check_changes_nothing(deployer, repository, bundle, visible, monkeypatch):
    before = visible(repository)
    monkeypatch.setattr(artifacts, "TOLERANCE", -1.0)
    with pytest.raises(ParityError):
        deployer.deploy(bundle())
    assert visible(repository) == before
    assert deployer.verify() == []


def test_second_deployment_is_refused_or_waits(deployer, repository, bundle, tiny_trunk_folder):
    import threading
    import time

    path = bundle()
    with locked(repository), pytest.raises(UserError, match="another build-repo or deploy-head is writing it"):
        deployer.deploy(path)
    patient = Deployer(repository, url=None, trunk=tiny_trunk_folder, wait_s=60)
    with locked(repository):
        thread = threading.Thread(target=patient.deploy, args=(path,))
        thread.start()
        time.sleep(0.3)
        assert pinned(repository, "mood") == 1
    thread.join()
    assert pinned(repository, "mood") == 2


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_full_disk_is_told_and_leaves_what_was_served(deployer, repository, bundle, chain, monkeypatch, what):
    def full(*args):
        raise OSError(28, "No space left on device")

    path = bundle()
    before = chain(repository, "multitask")
    monkeypatch.setattr(transaction, "os", stand_in(os, **{what: full}))
    with pytest.raises(OneTrunkError, match="No space left on device"):
        deployer.deploy(path)
    monkeypatch.undo()
    assert chain(repository, "multitask") == before
    assert read_repository(repository)
    deployer.deploy(path)
    assert deployer.verify() == []


def test_repository_that_cannot_be_written_is_told(deployer, repository, bundle, chain, monkeypatch):
    path, before = bundle(), chain(repository, "multitask")

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(transaction, "os", stand_in(os, open=read_only))
    with pytest.raises(OneTrunkError, match="Read-only file system"):
        deployer.deploy(path)
    monkeypatch.undo()
    assert chain(repository, "multitask") == before


def test_no_repository_is_told(tmp_path, bundle):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no repository here: run build-repo first"):
        Deployer(tmp_path / "empty", url=None).deploy(bundle())


def test_reports_are_json(deployer, bundle):
    json.dumps(dataclasses.asdict(deployer.deploy(bundle())))
    json.dumps([dataclasses.asdict(row) for row in deployer.tasks()])


def test_a_share_of_the_traffic_is_in_the_ensembles_until_the_trial_ends(repository, deployer, bundle):
    def told():
        config = text_format.Parse((repository / "multitask/config.pbtxt").read_text(), pb.ModelConfig())
        return read_ensemble_info(config.parameters["onetrunk"].string_value).tasks["mood"].candidate

    before = (repository / "manifest.json").read_text()
    assert '"split"' not in before
    new = bundle(shift=2.0)
    deployer.candidate(new, TrafficSplit(share=0.05, latency=None))
    assert told() == CandidateInfo(version=2, split=TrafficSplit(share=0.05, latency=None), reads={})
    assert deployer.tasks()[2].split == TrafficSplit(share=0.05, latency=None)
    deployer.candidate(new, TrafficSplit(share=0.5))
    assert told().split.share == 0.5
    assert deployer.verify() == []
    deployer.candidate(new)
    assert told() is None
    deployer.candidate(new, TrafficSplit(share=0.05))
    report = {"127.0.0.1:8001": {"mood": {"version": 2, "requests": 3}}}
    (row,) = [row for row in list_tasks(repository, trials=report) if row.task == "mood"]
    assert row.trials == {"127.0.0.1:8001": {"version": 2, "requests": 3}}
    deployer.promote()
    assert told() is None
    (row,) = [row for row in list_tasks(repository, trials=report) if row.task == "mood"]
    assert row.trials == {}, "the trial has ended, and the front does not know it yet"
    assert read_state(repository).heads["mood"].split is None
    with pytest.raises(UserError, match="task urgent has no live head, whose traffic could be split"):
        deployer.candidate(bundle(task="urgent"), TrafficSplit(share=0.05))
