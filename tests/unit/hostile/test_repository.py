"""What is written in a repository leads out of it nowhere: no file beside it is read, moved or removed."""

import contextlib
import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onetrunk.protocol.commit import Commit, read_commit
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import read_manifest
from onetrunk.protocol.names import COMMIT, MANIFEST, STAGING
from onetrunk.repository.transaction import Transaction, finish_transaction, recover

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]


@pytest.fixture
def place(tmp_path):
    """A folder with something to lose, and a repository in it with a transaction to be completed."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("ten years of work")
    repository = tmp_path / "repository"
    (repository / "head_a" / "1").mkdir(parents=True)
    (repository / STAGING / "files").mkdir(parents=True)
    (repository / STAGING / "files" / "config").write_text("evil")
    return repository


def decide(repository, **values):
    (repository / STAGING / COMMIT).write_text(json.dumps({"moves": [], "removed": [], "loadable": False, **values}))


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


OUTSIDE = ["../precious", "head_a/../../precious", ".", "", "..", "head_a/..", "/tmp", "//", "head_a//", "~", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "{absolute}", "manifest.json", STAGING])
@pytest.mark.parametrize("field", ["removed", "moves"])
def test_a_decision_about_anything_outside_is_not_carried_out(place, field, name):
    if field == "moves" and name == "manifest.json":
        pytest.skip("a manifest is moved in every transaction, and removed in none")
    name = name.format(absolute=place.parent / "precious")
    decide(place, **{field: ["head_a", name] if field == "removed" else [name]})
    before = everything(place.parent)
    with pytest.raises(UserError, match=r"nothing was changed; remove .*build-repo again") as raised:
        recover(place)
    assert "\n" not in str(raised.value)
    assert everything(place.parent) == before


PARTS = st.sampled_from(["..", ".", "", "head_a", "1", "precious", "link", "up", "thesis", STAGING, "files"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    moves=st.lists(st.lists(PARTS, max_size=5).map("/".join), max_size=3),
    removed=st.lists(st.lists(PARTS, max_size=5).map("/".join), max_size=3),
)
def test_no_decision_touches_what_lies_outside(place, moves, removed):
    (place / STAGING / "files").mkdir(parents=True, exist_ok=True)
    for link, target in (("link", "../precious"), ("head_a/up", "../..")):
        if (place / link).parent.is_dir() and not (place / link).is_symlink():
            (place / link).symlink_to(target)
    decide(place, moves=moves, removed=removed)
    with contextlib.suppress(UserError, OSError):
        finish_transaction(place)
    assert (place.parent / "precious" / "thesis").read_text() == "ten years of work"
    assert [path.name for path in (place.parent / "precious").iterdir()] == ["thesis"]
    assert sorted(path.name for path in place.parent.iterdir()) == ["precious", "repository"]


def test_links_lead_no_move_and_no_removal_out(place):
    (place / "head_b").symlink_to("../precious")
    for values in ({"removed": ["head_b"]}, {"removed": ["head_b/1"]}, {"moves": ["head_b/config"]}):
        decide(place, **values)
        with pytest.raises(UserError, match="leads out of"):
            recover(place)
    assert (place.parent / "precious" / "thesis").exists()


def test_a_staged_link_is_not_moved_in(place):
    (place / STAGING / "files" / "manifest.json").symlink_to("/etc/passwd")
    decide(place, moves=["manifest.json"])
    with pytest.raises(UserError, match="leads out of"):
        recover(place)
    assert not (place / "manifest.json").exists()


@pytest.mark.parametrize("target", ["../precious", "head_a"])
def test_staging_is_a_folder(place, target):
    shutil.rmtree(place / STAGING)
    (place / STAGING).symlink_to(target)
    with pytest.raises(UserError, match="found a link"), Transaction(place):
        pass
    assert (place.parent / "precious" / "thesis").exists()


def test_no_transaction_writes_through_a_link(place):
    (place / "head_b").symlink_to("../precious")
    with pytest.raises(UserError, match="leads out of"), Transaction(place) as transaction:
        transaction.write("head_b/thesis", "evil")
    assert (place.parent / "precious" / "thesis").read_text() == "ten years of work"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"[" * 100_000, b'{"moves": 1}', b'{"loadable": "yes"}', b'{"moves": ["\\ud800"]}']
)
def test_a_broken_decision_is_told(place, content):
    (place / STAGING / COMMIT).write_bytes(content)
    with pytest.raises(UserError, match=r"commit\.json") as raised:
        recover(place)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [f"{STAGING}/{COMMIT}", MANIFEST])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_decision_and_manifest_are_regular_files(place, name, put):
    put(place / name)
    with pytest.raises(UserError) as raised:
        read_commit(place) if name != MANIFEST else read_manifest(place)
    assert "\n" not in str(raised.value)


NAMES = ["head_rte/1/model.onnx", "multitask/1/.keep", "manifest.json", "tokenizer/1/model.py", "head_a/labels_a.txt"]


def test_what_transactions_write_is_allowed():
    assert Commit(moves=tuple(NAMES), removed=("head_rte", "head_rte/12", "candidate_rte")).moves == tuple(NAMES)


@pytest.fixture
def built(tiny_repository, tmp_path):
    return shutil.copytree(tiny_repository, tmp_path / "model_repository")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "head_mood/../../x", "head_mood//model.onnx", ""])
def test_a_manifest_names_nothing_outside(built, name):
    values = json.loads((built / MANIFEST).read_text())
    values["models"]["head_mood"]["versions"]["1"]["files"][name] = "0" * 64
    (built / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest\.json is broken") as raised:
        read_manifest(built)
    assert "\n" not in str(raised.value)


def test_a_manifest_names_only_files_of_its_models(built):
    values = json.loads((built / MANIFEST).read_text())
    values["models"]["head_mood"]["versions"]["1"]["files"]["head_topic/1/model.onnx"] = "0" * 64
    (built / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"head_mood: found the file head_topic/1/model\.onnx"):
        read_manifest(built)


def test_a_version_that_is_another_tasks_head_is_refused(built):
    from onetrunk.repository.state import read_state

    (built / "head_mood/1/head.json").write_bytes((built / "head_topic/1/head.json").read_bytes())
    with pytest.raises(UserError, match="found the head of topic"):
        read_state(built)
