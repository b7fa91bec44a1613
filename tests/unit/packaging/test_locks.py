"""The locks hold all that the project needs, with hashes, and nothing is installed past them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from locks import install, make
from onetrunk.toml_file import tomllib
from tests.fixtures.stand_ins import stand_in

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PYTHONS = ("3.10", "3.11", "3.12")
# Lock -> those that are installed with it.
TOGETHER = {"developing": ("serving", "torch"), "serving": ("torch",)}


def entries(path: Path) -> list[tuple[Requirement, int]]:
    """The packages of a lock, each with its number of hashes."""
    blocks = make.packages(path.read_text(encoding="utf-8"))
    return [(Requirement(block.split(" \\")[0].splitlines()[0]), block.count("--hash=sha256:")) for block in blocks]


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a Python on x86-64 Linux needs this package."""
    machine = {"python_version": python, "python_full_version": f"{python}.13", "extra": ""}
    machine |= {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}
    return requirement.marker is None or requirement.marker.evaluate(machine)


def required(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml requires with some extras, and for building the project."""
    lines = [*PROJECT["dependencies"], make.BUILD]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    own = [one for one in found if one.name == PROJECT["name"]]
    return [one for one in found if one not in own] + [two for one in own for two in required(tuple(one.extras))]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_a_version_and_hashes(path: Path) -> None:
    found = entries(path)
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes > 0, requirement
        assert requirement.url is None
    assert "://" not in path.read_text(encoding="utf-8"), "pip asks the index that its user has set"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("name", "extras"), make.EXTRAS.items())
def test_a_lock_has_one_allowed_version_of_all_that_is_required(
    name: str, extras: tuple[str, ...], python: str
) -> None:
    files = [ROOT / "locks" / f"{lock}.txt" for lock in (name, *TOGETHER.get(name, ()))]
    locked: dict[str, str] = {}
    for requirement in (one for file in files for one, _ in entries(file) if applies(one, python)):
        (pin,) = requirement.specifier
        assert locked.setdefault(requirement.name, pin.version) == pin.version
    for requirement in (one for one in required(extras) if applies(one, python)):
        version = locked[canonicalize_name(requirement.name)]
        assert Version(version) in requirement.specifier, f"{requirement}, not {version}: make lock"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_the_constraints_have_an_allowed_version_of_all_that_an_extra_requires(extra: str, python: str) -> None:
    pins = {one.name: str(one.specifier)[2:] for one, _ in entries(ROOT / "constraints.txt") if applies(one, python)}
    for requirement in (one for one in required((extra,)) if applies(one, python)):
        version = pins[canonicalize_name(requirement.name)]
        assert Version(version) in requirement.specifier, f"{requirement}, not {version}: make lock"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv, of the extra audit, and a package index")
@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_an_extra_can_be_installed_with_the_constraints(extra: str) -> None:
    """With all that its packages require in turn; nothing is downloaded but what they say about themselves."""
    options = ("--constraints", "constraints.txt", "--no-header", "--no-annotate", "--python-version", "3.11")
    command = ["uv", "pip", "compile", "--quiet", *options, *make.of_extras([extra])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pins = {str(one).partition(";")[0].strip() for one, _ in entries(ROOT / "constraints.txt")}
    # Else a package that nobody has tried comes with it.
    assert {line for line in done.stdout.splitlines() if line and not line.startswith("#")} <= pins


def test_the_locks_and_the_constraints_are_of_one_mind() -> None:
    constraints = {str(one) for one, _ in entries(ROOT / "constraints.txt")}
    for path in LOCKS:
        if path.stem not in ("torch_cpu", "manifests"):
            assert {f"{one.name}{one.specifier}" for one, _ in entries(path)} <= {
                line.partition(";")[0].strip() for line in constraints
            }
    (torch,) = (one for one, _ in entries(ROOT / "locks" / "torch.txt"))
    for build, _ in entries(ROOT / "locks" / "torch_cpu.txt"):
        assert str(build.specifier).partition("+")[0] == str(torch.specifier)


def test_nothing_is_installed_but_by_its_hash() -> None:
    for path in (ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "deploy").glob("*/Dockerfile")):
        for line in path.read_text().replace("\\\n", "").splitlines():
            for command in re.findall(r"pip install[^&;]*", line) if not line.startswith("#") else []:
                # A wheel that was built from the sources needs no index.
                assert "--require-hashes" in command or "--no-index" in command, f"{path.name}: {command}"


@pytest.mark.hostile
def test_a_file_with_another_hash_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself is asked, with a wheel of ours and no index at all."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "evil"\nversion = "1"\n[tool.hatch.build.targets.wheel]\nbypass-selection = true\n'
    )
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=tmp_path / "evil", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    monkeypatch.setattr(install, "LOCKS", tmp_path)
    place = ("--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "installed"))
    monkeypatch.setattr(install, "INSTALL", (*install.INSTALL, *place))
    (tmp_path / "lock.txt").write_text(f"evil==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(subprocess.CalledProcessError):
        install.install("lock")
    assert not (tmp_path / "installed").exists()
    (tmp_path / "lock.txt").write_text(f"evil==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    install.install("lock")
    assert (tmp_path / "installed" / "evil-1.dist-info").is_dir(), "so it was the hash"


@pytest.mark.parametrize("there", ["2.13.0", "2.13.0+cu130"])
def test_a_torch_that_its_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, there: str, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "installed", lambda package: there)
    nothing = stand_in(subprocess, run=lambda *arguments, **options: pytest.fail("nothing is installed"))
    monkeypatch.setattr(install, "subprocess", nothing)
    monkeypatch.setattr(install, "LOCKS", tmp_path)
    (tmp_path / "torch.txt").write_text("torch==2.13.0 \\\n    --hash=sha256:0\n")
    install.install_torch()


@pytest.mark.parametrize(("found", "expected"), [(0, ["torch_cpu"]), (1, ["torch_cpu", "torch", "cuda"])])
def test_the_build_for_cpus_is_taken_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, found: int, expected: list[str]
) -> None:
    asked = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        assert "--no-deps" in command
        asked.append(Path(command[-1]).stem)
        return subprocess.CompletedProcess(command, found)

    monkeypatch.setattr(install, "installed", lambda package: "")
    monkeypatch.setattr(install, "subprocess", stand_in(subprocess, run=run))
    install.install_torch()
    assert asked == expected
