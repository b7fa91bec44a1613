"""A deployer that dies at any write leaves a repository that answers as before or as after, and can be mended."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from onetrunk.deploy import Deployer, history
from onetrunk.protocol import transaction
from onetrunk.repository import artifacts
from onetrunk.repository import transaction as repository_transaction
from onetrunk.serving.repository import read_repository

ENSEMBLES = ("multitask", "multitask_tokens")
FILES = (transaction.__file__, repository_transaction.__file__, history.__file__)
CALLS = ((os, "replace"), (os, "open"), (os, "fsync"), (os, "write"), (shutil, "rmtree"), (Path, "mkdir"),
         (Path, "write_text"), (Path, "unlink"))  # fmt: skip


class Crash(BaseException):
    """Stands for a killed process: no handler for ordinary errors catches it."""


def die_at(monkeypatch, turn):
    """From the turn-th call on by which the deployer touches the disk, none is carried out. Gives a counter of them."""
    count = [0]

    def counted(original):
        def call(*args, **kwargs):
            if sys._getframe(1).f_code.co_filename in FILES:
                count[0] += 1
                # A dead process does not write in its last breath either: all calls after the first are refused too.
                if 0 < turn <= count[0]:
                    raise Crash
            return original(*args, **kwargs)

        return call

    for owner, name in CALLS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return count


@pytest.fixture(params=["update", "recut", "addition", "rollback", "removal", "candidate", "promotion", "prune"])
def action(request, repository, deployer, bundle):
    """What is done; the repository is ready for it."""
    new = bundle(shift=2.0)
    if request.param == "recut":
        new = bundle(shift=2.0, tap=2)
    elif request.param == "addition":
        new = bundle(shift=2.0, task="urgent")
    if request.param in ("rollback", "prune"):
        deployer.deploy(bundle(shift=1.0))
    elif request.param == "promotion":
        deployer.candidate(new)
    return {
        "update": lambda d: d.deploy(new),
        "recut": lambda d: d.deploy(new),
        "addition": lambda d: d.deploy(new),
        "rollback": lambda d: d.rollback("mood"),
        "removal": lambda d: d.remove("topic"),
        "candidate": lambda d: d.candidate(new),
        "promotion": lambda d: d.promote("mood"),
        "prune": lambda d: d.prune(1),
    }[request.param]


@pytest.fixture
def quick_artifacts(monkeypatch):
    """Each file is exported and checked once, and copied from then on: it is about writes here."""
    made = {}

    def once(original, key):
        def export(*args):
            path = next(arg for arg in args if isinstance(arg, Path))
            if key(args) not in made:
                original(*args)
                made[key(args)] = path.read_bytes()
            path.write_bytes(made[key(args)])

        return export

    monkeypatch.setattr(artifacts, "export_head", once(artifacts.export_head, lambda args: args[1].model_dump_json()))
    monkeypatch.setattr(artifacts, "export_segment", once(artifacts.export_segment, lambda args: args[1]))
    monkeypatch.setattr(artifacts, "check_parity", lambda *args, **settings: {})


@pytest.mark.slow
@pytest.mark.usefixtures("quick_artifacts")
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["sampled", "every"])
def test_crash_at_every_write(step, action, repository, tiny_trunk_folder, chain, visible, monkeypatch, tmp_path):
    """A crash at every ``step``-th write and at the last one."""

    def fresh():
        shutil.rmtree(tmp_path / "try", ignore_errors=True)
        return Deployer(shutil.copytree(repository, tmp_path / "try"), url=None, trunk=tiny_trunk_folder)

    deployer = fresh()
    path = deployer.repository
    before = {name: chain(path, name) for name in ENSEMBLES}
    with monkeypatch.context() as patch:
        writes = die_at(patch, 0)
        action(deployer)
    after = {name: chain(path, name) for name in ENSEMBLES}
    assert writes[0] > 10
    mended = set()
    for turn in sorted({*range(1, writes[0] + 1, step), writes[0]}):
        deployer = fresh()
        with monkeypatch.context() as patch:
            die_at(patch, turn)
            with pytest.raises(Crash):
                action(deployer)
        left = (str(visible(path)), transaction.is_decided(path))
        if left in mended:
            continue
        mended.add(left)
        assert read_repository(path, verify=True), "a server would not start"
        for name in ENSEMBLES:
            assert chain(path, name) in (before[name], after[name]), f"a mixture after write {turn}"
        # The next deployment finishes it or clears it away.
        another = Deployer(path, url=None, trunk=tiny_trunk_folder)
        another.remove("grade")
        assert another.verify() == []
        another.rollback("grade")
        assert {name: chain(path, name) for name in ENSEMBLES} in (before, after)
    assert len(mended) > 2
