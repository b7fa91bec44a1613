"""A file that is not as a build or a deployment wrote it is named before anything is served."""

import hashlib
import json
import shutil

import pytest

from onetrunk.protocol import integrity
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.integrity import check_files, compare
from onetrunk.protocol.manifest import read_manifest
from onetrunk.protocol.names import ENSEMBLES, MANIFEST, STAGING
from onetrunk.serving.repository import read_repository

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]


@pytest.fixture
def repository(tiny_repository, tmp_path):
    return shutil.copytree(tiny_repository, tmp_path / "model_repository")


def refused(repository, remedy="--no-verify"):
    with pytest.raises(UserError) as raised:
        read_repository(repository, verify=True)
    message = str(raised.value)
    assert "\n" not in message
    assert remedy in message
    return message


def files_of(repository):
    return sorted(file for entry in read_manifest(repository).models.values() for file in entry.all_files)


def test_what_was_built_is_served(repository):
    assert read_repository(repository, verify=True).tasks


def test_every_single_file_is_compared(repository):
    files = files_of(repository)
    assert len(files) > 20
    for file in files:
        content = (repository / file).read_bytes()
        # A byte more, which changes no meaning of a text config: only the hash tells.
        (repository / file).write_bytes(content + b"\n")
        with pytest.raises(UserError, match=r"is not as it was written.*run build-repo again"):
            check_files(repository, ENSEMBLES)
        (repository / file).unlink()
        with pytest.raises(UserError, match=r"is missing.*run build-repo again"):
            check_files(repository, ENSEMBLES)
        (repository / file).write_bytes(content)
    check_files(repository, ENSEMBLES)


def test_the_message_names_the_first_and_counts_the_others(repository):
    for file in ("head_mood/1/model.onnx", "head_topic/1/model.onnx"):
        (repository / file).write_bytes(b"evil")
    assert "head_mood/1/model.onnx is not as it was written (and 1 more)" in refused(repository)


def test_a_link_is_not_followed_out_even_to_equal_bytes(repository, tmp_path):
    file = repository / "head_mood/1/model.onnx"
    shutil.move(file, tmp_path / "model.onnx")
    file.symlink_to(tmp_path / "model.onnx")
    assert "head_mood/1/model.onnx cannot be read" in refused(repository)


@pytest.mark.parametrize(
    "name",
    ["tokenizer/triton_python_backend_stub", "tokenizer/1/json.py", "head_mood/1/model.py", "multitask/1/model.onnx"],
)
def test_a_file_beside_those_of_a_model_is_refused(repository, name):
    (repository / name).write_text("evil")
    assert f"{name} is not in the manifest: remove it" in refused(repository)


def test_what_no_server_loads_is_not_looked_at(repository):
    (repository / "head_by_hand/1").mkdir(parents=True)
    (repository / "head_by_hand/1/model.onnx").write_text("of the user's own")
    (repository / "head_mood/7").mkdir()  # a version that no config names
    (repository / "head_mood/7/model.onnx").write_text("left over")
    (repository / "head_mood/.nfs0001").write_text("")
    read_repository(repository, verify=True)


def test_byte_code_is_not_served(repository, tmp_path):
    for folder in ("tokenizer/1", "tokenizer"):
        (repository / folder / "__pycache__").mkdir(exist_ok=True)
        (repository / folder / "__pycache__/model.cpython-311.pyc").write_text("of other code")
    with pytest.raises(UserError, match=r"tokenizer/1/__pycache__ is not in the manifest \(and 1 more\): remove it"):
        check_files(repository, ENSEMBLES)
    read_repository(repository, verify=True)
    assert not list(repository.rglob("__pycache__"))


def test_byte_code_that_another_server_makes_meanwhile_is_removed_again(repository, monkeypatch):
    made = []

    def check(*args):
        if len(made) < 3:
            (repository / "tokenizer/1/__pycache__").mkdir()
            made.append(1)
        check_files(*args)

    monkeypatch.setattr("onetrunk.serving.repository.check_files", check)
    read_repository(repository, verify=True)
    assert len(made) == 3
    assert not list(repository.rglob("__pycache__"))


def test_nothing_outside_is_removed_as_byte_code(repository, tmp_path):
    (tmp_path / "project/__pycache__").mkdir(parents=True)
    (repository / "tokenizer/1/__pycache__").symlink_to(tmp_path / "project/__pycache__")
    assert "leads out of" in refused(repository, remedy="inside")
    assert (tmp_path / "project/__pycache__").is_dir()


def test_a_model_that_the_ensembles_name_must_be_in_the_manifest(repository):
    values = json.loads((repository / MANIFEST).read_text())
    del values["models"]["head_mood"]
    (repository / MANIFEST).write_text(json.dumps(values))
    assert "head_mood/ is not in the manifest" in refused(repository)


def test_a_repository_that_nobody_built_is_served(repository):
    (repository / MANIFEST).unlink()
    (repository / "head_mood/1/model.onnx").write_bytes(b"by hand")
    read_repository(repository, verify=True)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000])
def test_a_broken_manifest_is_told(repository, content):
    (repository / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        read_repository(repository, verify=True)


def interrupt(repository, moved):
    """A deployment of new labels that was interrupted after some of its moves, or before any."""
    manifest = json.loads((repository / MANIFEST).read_text())
    files = repository / STAGING / "files"
    new = {"head_mood/labels_mood.txt": "poor\nfine\n", "multitask/labels_mood.txt": "poor\nfine\n"}
    for name, text in new.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
        manifest["models"][name.split("/")[0]]["files"][name] = hashlib.sha256(text.encode()).hexdigest()
    (files / MANIFEST).write_text(json.dumps(manifest))
    moves = [*new, MANIFEST]
    (repository / STAGING / "commit.json").write_text(json.dumps({"moves": moves, "removed": [], "loadable": True}))
    for name in moves[:moved]:
        shutil.move(files / name, repository / name)


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_between_two_moves_of_a_deployment_old_and_new_files_are_served(repository, moved):
    interrupt(repository, moved)
    read_repository(repository, verify=True)
    (repository / "head_mood/labels_mood.txt").write_text("evil\nevil\n")
    assert "head_mood/labels_mood.txt is not as it was written" in refused(repository)


def test_a_deployment_that_ends_meanwhile_is_no_fault(repository, monkeypatch):
    interrupt(repository, moved=1)
    looks = []

    def compare_while_files_move(folder, expected):
        looks.append(expected)
        if len(looks) == 1:  # the deployment ends, and the file that is replaced is not there for a moment
            moves = json.loads((repository / STAGING / "commit.json").read_text())["moves"]
            for name in moves[1:]:
                shutil.move(repository / STAGING / "files" / name, repository / name)
            shutil.rmtree(repository / STAGING)
            return {"multitask/labels_mood.txt": "is missing"}
        return compare(folder, expected)

    monkeypatch.setattr(integrity, "compare", compare_while_files_move)
    check_files(repository, ENSEMBLES)
    assert len(looks) == 2


def test_compare_names_what_differs_and_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c").mkdir()
    right = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # of "a"
    expected = {name: {right} for name in "abcd"}
    assert compare(tmp_path, expected) == {
        "b": "is not as it was written",
        "c": f"cannot be read ({tmp_path / 'c'}: found a folder, allowed is a regular file: put the file itself there)",
        "d": "is missing",
    }
