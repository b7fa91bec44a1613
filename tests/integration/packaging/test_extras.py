"""Each extra brings all that its part of the project imports: tried with those packages alone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fixtures.wheel import Installation, pip_install

pytestmark = pytest.mark.slow

# Extras -> the packages that must import with them, and the commands that must show their help.
PARTS = {
    "": (
        ["onetrunk.protocol", "onetrunk.admin", "onetrunk.releases", "onetrunk.client"],
        ["ask-repo", "pull-repo", "prune-releases"],
    ),
    "bench": (["onetrunk.client.bench"], ["bench-repo"]),
    "front": (["onetrunk.serving.front", "onetrunk.serving.command"], ["serve-front"]),
    "server,cpu": (["onetrunk.serving"], ["serve-repo"]),
    "builder,cpu": (
        [
            f"onetrunk.{name}"
            for name in ("nn", "tasks", "training", "distill", "export", "repository", "deploy", "cli")
        ],
        ["train-head", "search-heads", "build-repo", "deploy-head"],
    ),
}
INSTALLED = ("", "builder", "front", "server", "cpu", "bench", "dev")
# Imported by Triton, which brings these modules itself, or copied to where it does.
NOT_IMPORTED = {"onetrunk.serving.backends", "onetrunk.repository.tokenizer"}
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1].split(","):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{name}."):
        if not module.name.startswith(tuple(sys.argv[2].split(","))):
            importlib.import_module(module.name)
"""


def closure(extras: str) -> list[Distribution]:
    """Return the installed distributions that the project needs with some extras, and all that they need."""
    wanted = [Requirement(f"onetrunk[{extras}]" if extras else "onetrunk")]
    seen: set[tuple[str, str]] = set()
    found: dict[str, Distribution] = {}
    while wanted:
        requirement = wanted.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            try:
                found[requirement.name] = distribution(requirement.name)
            except PackageNotFoundError:  # such as the CUDA libraries of a torch build that this machine does not have
                continue
            for line in found[requirement.name].requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    wanted.append(needed)
    del found["onetrunk"]
    return list(found.values())


@pytest.fixture(params=PARTS, ids=lambda extras: extras or "none")
def part(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> tuple[Installation, list[str], list[str]]:
    """The wheel in an environment with the packages of some extras alone, and what must work there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (tmp_path / "dependencies").mkdir()
    for package in closure(request.param):
        for file in package.files or []:
            place = tmp_path / "dependencies" / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not place.exists():
                place.symlink_to(package.locate_file(file.parts[0]))
    (site_packages / "dependencies.pth").write_text(f"{tmp_path / 'dependencies'}\n")
    done = pip_install(python, "--no-deps", "--ignore-installed", str(wheel))
    assert done.returncode == 0, done.stderr
    (tmp_path / "empty").mkdir()
    packages, commands = PARTS[request.param]
    return Installation(python, site_packages, tmp_path / "empty"), packages, commands


def test_every_requirement_is_installed_in_a_version_that_it_allows() -> None:
    for line in distribution("onetrunk").requires or []:
        requirement = Requirement(line)
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in INSTALLED):
            assert requirement.specifier.contains(distribution(requirement.name).version), line


def test_everything_imports_with_the_packages_of_the_extra_alone(
    part: tuple[Installation, list[str], list[str]],
) -> None:
    installation, packages, commands = part
    done = installation.run("python", "-c", IMPORT_ALL, ",".join(packages), ",".join(NOT_IMPORTED))
    assert done.returncode == 0, done.stderr
    for command in commands:
        assert installation.run(command, "--help").stdout.startswith(f"Usage: {command} ")
