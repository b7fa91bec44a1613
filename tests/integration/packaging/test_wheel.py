"""What the wheel contains, needs and says in a folder that is not the checkout."""

from __future__ import annotations

import re
import tarfile
import zipfile
from dataclasses import replace
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.fixtures.wheel import ROOT, Installation, build

pytestmark = pytest.mark.slow

COMMANDS = {
    "train-head",
    "refit-head",
    "train-limb",
    "search-heads",
    "build-repo",
    "deploy-head",
    "adopt-models",
    "push-head",
    "pull-head",
    "pull-repo",
    "prune-releases",
    "serve-repo",
    "serve-front",
    "ask-repo",
    "bench-repo",
}
# Their packages are chosen by the machine (a GPU) or by the user (a hub), and are not pinned here.
UNPINNED = {"onnxruntime-gpu", "datasets", "onetrunk"}


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[Requirement]:
    """All requirements, of every extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_nothing_but_onetrunk_is_added_to_site_packages(installation: Installation) -> None:
    (record,) = installation.site_packages.glob("onetrunk-*.dist-info/RECORD")
    files = [line.split(",")[0] for line in record.read_text().splitlines()]
    scripts = {Path(file).name for file in files if file.startswith("../")}
    top = {file.partition("/")[0] for file in files if not file.startswith("../")}
    assert scripts == COMMANDS
    assert top == {"onetrunk", record.parent.name}
    assert "onetrunk/__init__.py" not in files, "it would shut other packages out of the namespace"


def test_commands_and_api_come_from_the_wheel(installation: Installation) -> None:
    code = "from onetrunk.client import Client, AsyncClient; import onetrunk.client as found; print(found.__file__)"
    result = installation.run("python", "-c", code)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(installation.site_packages)
    for command in sorted(COMMANDS):
        result = installation.run(command, "--help")
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"Usage: {command} ")


def test_every_requirement_is_pinned_to_a_version_that_it_allows(requirements: list[Requirement]) -> None:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name.lower(), []).append(pin)
    assert requirements
    for requirement in requirements:
        name = re.sub(r"[-_.]+", "-", requirement.name.lower())
        if name in UNPINNED:
            continue
        assert name in pins, f"{requirement} has no line in constraints.txt"
        for pin in pins[name]:
            (exact,) = pin.specifier
            assert Version(exact.version) in requirement.specifier, f"{pin} is not allowed by {requirement}"


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    again = build("wheel", sources, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {name: first.read(name) for name in first.namelist()} == {
            name: second.read(name) for name in second.namelist()
        }


def test_a_folder_without_heads_is_told_where_heads_come_from(installation: Installation, tmp_path: Path) -> None:
    # Other tests leave heads in the folder of the installation.
    result = replace(installation, folder=tmp_path).run("build-repo", "--tasks", "all")
    assert result.returncode != 0
    assert "--heads" in result.stderr
    assert "Traceback" not in result.stderr
