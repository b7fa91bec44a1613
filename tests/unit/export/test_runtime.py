"""An ONNX Runtime of another version: which one a release has, how it is fetched, and that files run on it."""

import os
from pathlib import Path

import onnxruntime
import pytest

from onetrunk import machine
from onetrunk.export.errors import ParityError
from onetrunk.export.foreign import ForeignSession
from onetrunk.export.release import Release, get_release
from onetrunk.export.runtime import Runtime, own_runtime, runtime_of
from onetrunk.protocol.errors import OneTrunkError, UserError


def test_the_installed_one_is_taken_if_it_is_the_releases(tmp_path):
    assert runtime_of(Release("99.01", onnxruntime.__version__), tmp_path) == own_runtime()
    assert own_runtime().packages is None
    assert not any(tmp_path.iterdir())


def test_a_version_that_is_not_known_exactly_is_told(tmp_path):
    with pytest.raises(UserError, match=r"Triton 26\.11: its ONNX Runtime is 1\.30\.0 or newer"):
        runtime_of(get_release("26.11"), tmp_path)


def test_a_version_that_cannot_be_had_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    # Whether or not the index can be reached.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OneTrunkError, match=r"ONNX Runtime 1\.19\.2 cannot be fetched: .*--gate on") as told:
        runtime_of(Release("24.10", "1.19.2"), tmp_path)
    assert "\n" not in str(told.value)
    assert [path.name for path in (tmp_path / "runtimes").iterdir() if not path.name.endswith(".lock")] == []


def test_it_is_fetched_once(tmp_path, monkeypatch):
    fetched = []

    def run(command, **options):
        fetched.append(command[-1])
        target = Path(command[command.index("--target") + 1])
        (target / "onnxruntime").mkdir(parents=True)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("onetrunk.export.runtime.subprocess.run", run)
    release = Release("24.10", "1.19.2")
    first = runtime_of(release, tmp_path)
    assert first == runtime_of(release, tmp_path)
    assert fetched == ["onnxruntime==1.19.2"]
    assert os.listdir(first.packages) == ["onnxruntime"]


def test_files_run_on_the_package_that_is_named(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('this is the other one')")
    file = tmp_path / "head.onnx"
    file.write_bytes(b"never read")
    with pytest.raises(ParityError, match="this is the other one"):
        ForeignSession(file, "head_mood", packages=tmp_path)


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("flags\t\t: fpu avx2 avx512bw avx512_vnni amx_int8", "AMX"),
        ("flags\t\t: fpu avx2 avx512bw avx512_vnni", "AVX-512 VNNI"),
        ("flags\t\t: fpu avx2", "AVX2"),
        ("Features\t: fp asimd asimddp", "Arm dot product"),
    ],
)
def test_the_unit_for_integers_is_told(tmp_path, monkeypatch, flags, unit):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.integer_unit() == unit
    assert Runtime("1.19.2").measured_by == f"ONNX Runtime 1.19.2, {unit}"
