"""Finding perf_analyzer, and what is said where it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onetrunk.client.bench import perf_analyzer as installation
from onetrunk.client.bench.perf_analyzer import NoPerfAnalyzer, find_perf_analyzer
from tests.fixtures.stand_ins import stand_in


def test_a_program_that_is_missing_or_does_not_start(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "sys", stand_in(sys, executable=str(tmp_path / "python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoPerfAnalyzer, match="neither beside this Python nor on PATH") as raised, find_perf_analyzer():
        pass
    assert "tritonclient==2.51.0" in str(raised.value)
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libb64.so.0d' >&2\nexit 127\n")
    broken.chmod(0o755)
    with (
        pytest.raises(NoPerfAnalyzer, match=r"does not start: .*libb64\.so\.0d\n(.*\n)*.*libb64-0d"),
        find_perf_analyzer(),
    ):
        pass


def test_a_library_hidden_in_a_package_is_put_on_the_path(monkeypatch, tmp_path):
    """A program that starts only where libcudart.so.12 is on LD_LIBRARY_PATH under that name."""
    library = tmp_path / "some.libs" / "libcudart-09529672.so.12.6.77"
    library.parent.mkdir()
    library.write_text("library")
    program = tmp_path / "perf_analyzer"
    program.write_text(
        "#!/bin/sh\nIFS=:\nfor folder in $LD_LIBRARY_PATH; do\n"
        '  [ "$(cat "$folder/libcudart.so.12" 2>/dev/null)" = library ] &&\n'
        '    echo "Perf Analyzer Version 2.51.0" && exit 0\n'
        "done\necho libcudart.so.12 >&2\nexit 127\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere/else")

    class File(str):
        name = property(lambda self: Path(self).name)

        def locate(self):
            return self

    def files(package):
        if package != "nvidia-pytriton":
            raise installation.metadata.PackageNotFoundError(package)
        return [File(tmp_path / "libcudart.py"), File(library)]

    monkeypatch.setattr(installation.metadata, "files", files)
    with find_perf_analyzer(program) as found:
        assert found.version == "2.51.0"
        assert found.environment["LD_LIBRARY_PATH"].endswith(":/somewhere/else")
        link = Path(found.environment["LD_LIBRARY_PATH"].partition(":")[0])
        assert link.is_dir()
    assert not link.exists()
