"""A disk that fills up while a run is being written: one line that says what to do, and what was there stays."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from onetrunk import files
from onetrunk.distill.trials import Trials, save_trials
from onetrunk.files import atomic_write
from onetrunk.nn import bundle
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.training import cache, models, train, trainer
from onetrunk.training.trainer import execute, find_run
from tests.fixtures.recorded_runs import spec_of

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
FULL = r"cannot be written: the disk (is|seems to be) full; "


@pytest.fixture
def full_disk(monkeypatch):
    """A function that makes the disk full for files with one suffix, and returns another that makes room again."""

    def fill(ending):
        @contextmanager
        def filled(path):
            with atomic_write(path) as aside:
                if not path.name.endswith(ending):
                    yield aside
                elif ending == ".safetensors":
                    # It writes beside the name that it is given, and would replace the link; this is what it raises.
                    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
                else:
                    os.symlink("/dev/full", aside)
                    yield aside

        # The last one is behind atomic_write_text.
        for module in (cache, models, trainer, files):
            monkeypatch.setattr(module, "atomic_write", filled)
        return monkeypatch.undo

    return fill


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".json", "lengths.npy", "about.json"])
def test_run_that_meets_a_full_disk_goes_on_when_there_is_room(
    mood, second, new_experiment, tmp_path, full_disk, ending
):
    spec = spec_of("fork", new_experiment(mood, second))
    undo = full_disk(ending)
    with pytest.raises(OneTrunkError, match=FULL) as caught:
        execute(spec, new_experiment(mood, second))
    assert "\n" not in str(caught.value)
    assert ending in str(caught.value)
    assert list(tmp_path.rglob("*.part")) == []
    assert find_run(spec, new_experiment(mood, second)) is None
    undo()
    record = execute(spec, new_experiment(mood, second))
    assert record.state == "finished"
    assert len(record.losses) == 3


def test_study_that_meets_a_full_disk_keeps_its_old_file(tmp_path, full_disk):
    save_trials(tmp_path, Trials(study="search", task="mood", metric="accuracy"))
    before = (tmp_path / "mood.search.json").read_bytes()
    full_disk(".json")
    with pytest.raises(OneTrunkError, match=FULL):
        save_trials(tmp_path, Trials(study="search", task="mood", metric="f1", notes=("x" * 100_000,)))
    assert (tmp_path / "mood.search.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mood.search.json"]


def test_bundle_that_meets_a_full_disk_leaves_the_old_one(mood, tiny_trunk, tmp_path, monkeypatch):
    places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
    old = train(mood, tiny_trunk, **places).spec

    def save_file(weights, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(bundle, "save_file", save_file)
    with pytest.raises(OneTrunkError, match=FULL):
        train(mood, tiny_trunk, force=True, **places)
    assert bundle.load_bundle(tmp_path / "heads" / "mood").spec == old
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["mood"]


def test_file_comes_into_its_place_whole(tmp_path):
    path = tmp_path / "folder" / "runs.json"
    with atomic_write(path) as aside:
        aside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"

    def write_half():
        with atomic_write(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["runs.json"]


def test_other_reasons_are_reported_as_they_are(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OneTrunkError, match="below: cannot be written: File exists"),
        atomic_write(tmp_path / "file" / "below"),
    ):
        pass
    with pytest.raises(OneTrunkError, match="cannot be written: "), atomic_write(tmp_path / "weights") as aside:
        save_file({}, aside / "not" / "there")


def test_error_that_is_not_about_writing_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not fit"), atomic_write(tmp_path / "weights"):
        raise RuntimeError("shapes do not fit")


def test_a_home_that_cannot_be_written_is_told_in_one_line(mood, tiny_trunk, tmp_path, monkeypatch):
    for variable in ("ONETRUNK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "home").write_text("a file, which root cannot make folders in, either")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remedy = "fix that, or name another folder by ONETRUNK_CACHE, or by --cache where the command has it, and"
    message = rf"home/\.cache/onetrunk/.*cannot be written: Not a directory; {remedy}"
    with pytest.raises(OneTrunkError, match=message) as raised:
        train(mood, tiny_trunk, heads=tmp_path / "heads", device="cpu", trunk_dtype="fp32")
    assert "\n" not in str(raised.value)
