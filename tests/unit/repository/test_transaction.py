"""A crash at any single write leaves the old repository or the new one."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onetrunk.protocol import transaction as module
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import LOCK
from onetrunk.protocol.transaction import Transaction, finish_transaction, locked
from tests.fixtures.stand_ins import stand_in


class Crash(BaseException):
    """Stands for a killed process: no handler for ordinary errors catches it."""


def tree(repository):
    return {
        str(path.relative_to(repository)): path.read_text()
        for path in sorted(repository.rglob("*"))
        if path.is_file() and module.STAGING not in path.parts
    }


OLD = {
    "head_a/1/model.onnx": "a1",
    "head_a/config.pbtxt": "pins a1",
    "head_b/1/model.onnx": "b1",
    "manifest.json": "old",
}
CHANGE = {"head_a/2/model.onnx": "a2", "head_a/config.pbtxt": "pins a2", "manifest.json": "new"}
NEW = {name: text for name, text in {**OLD, **CHANGE}.items() if not name.startswith("head_b")}


@pytest.fixture
def repository(tmp_path):
    for name, text in OLD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def publish(repository):
    with locked(repository):
        finish_transaction(repository)
        with Transaction(repository) as transaction:
            for name, text in CHANGE.items():
                transaction.write(name, text)
            transaction.commit(["head_b"])


def test_transaction(repository):
    publish(repository)
    assert tree(repository) == NEW
    assert not (repository / module.STAGING).exists()


# Every call by which transaction.py touches the disk, and how often it comes in one transaction.
CALLS = {
    (os, "replace"): 4,
    (os, "open"): 13,
    (os, "fsync"): 12,
    (shutil, "rmtree"): 5,
    (Path, "mkdir"): 8,
    (Path, "write_text"): 4,
    (Path, "unlink"): 1,
}
TURNS = [(owner, call, turn) for (owner, call), count in CALLS.items() for turn in range(1, count + 1)]


def crash_at(monkeypatch, owner, call, turn):
    """The turn-th call from transaction.py raises instead of being carried out. Gives a counter of those calls."""
    original, count = getattr(owner, call), [0]

    def counted(*args, **kwargs):
        # What a library does inside one of these calls depends on Python's version, and is not counted.
        if sys._getframe(1).f_code.co_filename == module.__file__:
            count[0] += 1
            if count[0] == turn:
                raise Crash
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, call, counted)
    return count


@pytest.mark.parametrize(("owner", "call", "turn"), TURNS)
def test_crash_at_every_write(repository, monkeypatch, owner, call, turn):
    with monkeypatch.context() as patch:
        crash_at(patch, owner, call, turn)
        with pytest.raises(Crash):
            publish(repository)
    decided = (repository / module.STAGING / module.COMMIT).exists()
    before = tree(repository)
    with locked(repository):
        assert finish_transaction(repository) == decided
    assert tree(repository) == (NEW if decided else before)
    assert tree(repository) in (OLD, NEW)
    assert not (repository / module.STAGING).exists()


@pytest.mark.parametrize(("owner", "call"), CALLS)
def test_the_crash_test_leaves_no_write_out(repository, monkeypatch, owner, call):
    with monkeypatch.context() as patch:
        count = crash_at(patch, owner, call, turn=0)
        publish(repository)
    assert count[0] == CALLS[owner, call]


def test_failure_before_the_decision_leaves_no_trace(repository):
    def fail():
        with Transaction(repository) as transaction:
            transaction.write("head_a/2/model.onnx", "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(repository) == OLD
    assert not (repository / module.STAGING).exists()


def test_full_disk_is_told_and_leaves_the_old_repository(repository, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "os", stand_in(os, fsync=full))
    with pytest.raises(OneTrunkError, match="No space left on device while committing"):
        publish(repository)
    monkeypatch.undo()
    assert tree(repository) == OLD


def test_second_writer_is_refused(repository):
    with locked(repository), pytest.raises(UserError, match="another build-repo"), locked(repository):
        pass
    with locked(repository):
        pass


def test_place_that_cannot_be_a_repository_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"), locked(tmp_path / "file" / "repository"):
        pass


def test_of_writers_one_at_a_time_holds_a_repository_and_nothing_is_left(repository):
    """By a lock that also holds over NFS: one of a file that is open for writing, and not of a folder."""
    holding, most = [], []

    def write():
        with locked(repository, wait_s=60):
            holding.append(1)
            most.append(len(holding))
            holding.pop()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write) for _ in range(40)]:
            done.result()
    assert most == [1] * 40
    assert tree(repository) == OLD
    with locked(repository):
        lock = repository / LOCK
        assert lock.is_file()
        with pytest.raises(UserError, match="another build-repo or deploy-head is writing it"), locked(repository):
            pass
        assert lock.is_file(), "whoever is refused does not remove it"
    lock.touch()  # as a killed writer leaves it
    with locked(repository):
        pass
    assert tree(repository) == OLD


@pytest.mark.hostile
def test_a_lock_that_is_a_link_is_not_followed(repository, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "file"
    (repository / LOCK).symlink_to(outside)
    with pytest.raises(UserError, match="cannot be created or written"), locked(repository):
        pass
    assert not outside.exists()


def test_nothing_above_the_repository_is_opened(repository, monkeypatch):
    """It may be a folder that the user must not read."""
    opened, sync = [], module.sync
    monkeypatch.setattr(module, "sync", lambda path: (opened.append(path), sync(path)))
    with Transaction(repository) as transaction:
        for name, text in CHANGE.items():
            transaction.write(name, text)
        transaction.commit(["head_b"])
    assert tree(repository) == NEW
    assert {repository, repository / "head_a", repository / "head_a/2"} <= set(opened)
    assert all(path.is_relative_to(repository) for path in opened)
