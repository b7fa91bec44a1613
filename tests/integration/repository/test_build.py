"""build-repo from end to end on the tiny trunk: what is written, what is kept, and what a failure leaves."""

import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner

from onetrunk.cli.build_repo import build_repo
from onetrunk.export.errors import ParityError
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import read_manifest
from onetrunk.repository import BuildRequest, artifacts, build_repository


def hashes(repository):
    return {
        str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def heads(tiny_heads, tmp_path):
    shutil.copytree(tiny_heads, tmp_path / "heads")
    return tmp_path / "heads"


@pytest.fixture
def repository(tiny_repository, tmp_path):
    shutil.copytree(tiny_repository, tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def build(heads, tiny_trunk_folder, repository):
    def run(**changes):
        settings = {"heads": heads, "trunk": tiny_trunk_folder, "max_length": 32, **changes}
        return build_repository(BuildRequest(output=settings.pop("output", repository), **settings))

    return run


def models(repository):
    return {path.name for path in repository.iterdir() if path.is_dir()}


def test_second_build_writes_nothing(build, repository):
    times = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    report = build()
    assert not report.changed
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == times


def test_manifest_has_the_hash_of_every_file(repository):
    recorded = {n: h for entry in read_manifest(repository).models.values() for n, h in entry.all_files.items()}
    on_disk = hashes(repository)
    del on_disk["manifest.json"]
    assert recorded == on_disk


def test_only_the_tasks_that_were_named(build, tmp_path):
    output = tmp_path / "two"
    build(output=output, tasks=["mood", "topic"])
    assert models(output) == {
        "tokenizer", "trunk_00_00", "trunk_00_03", "head_mood", "head_topic", "multitask", "multitask_tokens"
    }  # fmt: skip


def test_fewer_tasks_remove_heads_and_segments_that_nothing_uses(build, repository):
    report = build(tasks=["match"])
    assert set(report.removed) == {"head_grade", "head_mood", "head_topic", "trunk_00_00", "trunk_01_03"}
    assert models(repository) == {"tokenizer", "trunk_00_01", "head_match", "multitask", "multitask_tokens"}


def test_one_more_bundle_writes_that_head_and_the_ensembles_only(build, repository):
    build(tasks=["grade", "match", "topic"])
    before = hashes(repository)
    report = build()
    after = hashes(repository)
    changed = {name.split("/")[0] for name in after if after[name] != before.get(name)}
    assert changed == {"head_mood", "multitask", "multitask_tokens", "manifest.json"}
    assert set(report.written) == {name for name in after if after[name] != before.get(name)}


def retrain(heads, task, trunk):
    bundle = load_bundle(heads / task)
    head = bundle.head(trunk)
    head.output.bias.add_(0.5)
    save_bundle(heads / task, bundle.spec, head)


def test_changed_head_gets_a_new_version_and_keeps_the_old_one(build, repository, heads, tiny_trunk):
    old = (repository / "head_mood/1/model.onnx").read_bytes()
    retrain(heads, "mood", tiny_trunk)
    report = build()
    assert report.models["head_mood"] == "version 2, new"
    assert report.models["head_grade"] == "version 1, kept"
    assert (repository / "head_mood/1/model.onnx").read_bytes() == old
    assert (repository / "head_mood/2/model.onnx").read_bytes() != old
    assert 'model_name: "head_mood"\n    model_version: 2' in (repository / "multitask/config.pbtxt").read_text()


def test_head_of_another_query_gets_a_new_version(build, heads):
    path = heads / "mood" / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "query": "mean"}))
    assert build().models["head_mood"] == "version 2, new"


def test_damaged_file_is_made_again(build, repository):
    (repository / "head_mood/1/model.onnx").write_bytes(b"damaged")
    assert build().models["head_mood"] == "version 2, new"


def test_lost_config_is_written_again(build, repository):
    text = (repository / "head_mood/config.pbtxt").read_text()
    (repository / "head_mood/config.pbtxt").unlink()
    assert build().written == ("head_mood/config.pbtxt", "manifest.json")
    assert (repository / "head_mood/config.pbtxt").read_text() == text


def test_longer_texts_change_configs_only(build, repository):
    report = build(max_length=48)
    assert {name.rsplit("/")[-1] for name in report.written} == {"config.pbtxt", "manifest.json"}
    assert 'string_value: "16,32,48"' in (repository / "tokenizer/config.pbtxt").read_text()


def test_dry_run_says_what_a_build_then_does(build, repository, heads, tiny_trunk):
    retrain(heads, "mood", tiny_trunk)
    before = hashes(repository)
    planned = build(dry_run=True)
    assert hashes(repository) == before
    done = build()
    assert (planned.models, planned.written) == (done.models, done.written)


def test_dry_run_makes_no_folder(build, tmp_path):
    assert build(output=tmp_path / "new", dry_run=True).changed
    assert not (tmp_path / "new").exists()


def test_failed_check_publishes_nothing(build, repository, heads, tiny_trunk, monkeypatch):
    retrain(heads, "mood", tiny_trunk)
    before = hashes(repository)
    monkeypatch.setattr(artifacts, "TOLERANCE", -1.0)
    with pytest.raises(ParityError, match="nothing was published"):
        build()
    assert hashes(repository) == before


def test_full_disk_publishes_nothing(build, repository, heads, tiny_trunk, monkeypatch):
    retrain(heads, "mood", tiny_trunk)
    before = hashes(repository)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onetrunk.repository.artifacts.export_head", full)
    with pytest.raises(OneTrunkError, match="No space left on device while writing; nothing was published"):
        build()
    assert hashes(repository) == before


def test_an_interrupted_transaction_is_completed_first(build, repository, heads, tiny_trunk, monkeypatch):
    retrain(heads, "mood", tiny_trunk)
    with monkeypatch.context() as patch:
        patch.setattr("onetrunk.protocol.transaction.finish_transaction", lambda repository: None)
        build()
    assert (repository / ".staging/commit.json").exists()
    report = build()
    assert report.finished_earlier
    assert not report.changed
    assert (repository / "head_mood/2/model.onnx").exists()


def test_manifest_that_names_other_places_is_refused(build, repository, tmp_path):
    (tmp_path / "precious").mkdir()
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["models"]["../precious"] = manifest["models"]["tokenizer"]
    (repository / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        build()
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["moood"]}, "no head for task 'moood' .did you mean mood.. in .*: grade, match, mood, topic"),
        ({"max_length": 65}, "--max-length 65: this trunk reads 5 to 64 tokens"),
        ({"max_length": 2}, "this trunk reads 5 to 64"),
        ({"triton_release": "99.1"}, "'99.1' is not known"),
        ({"trunk": None}, "trained on trunk bert-4x32@.*, but this trunk is bert-6x384@"),
    ],
)
def test_wrong_argument_is_told_in_one_line(build, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        build(**changes)
    assert "\n" not in str(raised.value)


def test_empty_folder_of_heads_is_told(build, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no head in it; train one with train-head"):
        build(heads=tmp_path / "none")


@pytest.fixture
def command(heads, tiny_trunk_folder, repository):
    def run(*arguments):
        places = ["--heads", str(heads), "--trunk", str(tiny_trunk_folder), "--output", str(repository)]
        return CliRunner().invoke(build_repo, [*places, "--max-length", "32", *arguments])

    return run


def test_command_says_that_nothing_changed(command):
    result = command("--tasks", "all")
    assert result.exit_code == 0
    assert "nothing changed, nothing written (grade, match, mood, topic)" in result.stdout


def test_command_reports_what_it_wrote(command):
    result = command("--tasks", "mood, match", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["tasks"] == ["match", "mood"]
    assert report["models"]["head_grade"] == "removed"
    assert report["changed"]
    assert not report["dry_run"]


@pytest.mark.parametrize("tasks", ["nonesuch", "mood,mood", " , ", ""])
def test_command_refuses_in_one_line_with_exit_code_2(command, tasks):
    result = command("--tasks", tasks)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line for line in result.stderr.splitlines() if line.strip()][-1].startswith("error: ")
    assert "Traceback" not in result.output
