"""Finding perf_analyzer, and making it start where a library of it is hidden in another package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from onetrunk.protocol.errors import OneTrunkError

HOW_TO_GET = """\
On x86-64 Linux with glibc 2.34 or later:
  pip install 'tritonclient==2.51.0'       the wheel carries perf_analyzer
  apt-get install libb64-0d                Debian and Ubuntu
  libcudart.so.12, no GPU needed           in the packages nvidia-pytriton and nvidia-cuda-runtime-cu12
Anywhere else it is in NVIDIA's container: docker compose run --rm bench"""

# Packages with a CUDA runtime library in them, which perf_analyzer is linked against even for CPU servers.
CUDA_PACKAGES = ("nvidia-cuda-runtime-cu12", "nvidia-pytriton")
CUDA_LIBRARY = re.compile(r"libcudart(-[0-9a-f]+)?\.so\.12(\.\d+)*$")


class NoPerfAnalyzer(OneTrunkError):  # noqa: N818 - named as a state, not a mistake
    """perf_analyzer is missing or does not start; the message says how to get it."""

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}\n{HOW_TO_GET}")


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that starts.

    Attributes:
        path: of the program.
        environment: to start it in.
        version: as it says itself.
    """

    path: Path
    environment: Mapping[str, str]
    version: str


@contextmanager
def find_perf_analyzer(path: Path | None = None) -> Iterator[PerfAnalyzer]:
    """The program, as long as the context lasts.

    Args:
        path: of the program; None looks beside this Python and then on PATH.

    Raises:
        NoPerfAnalyzer: there is none, or it does not start.
    """
    program = path or _search()
    with TemporaryDirectory(prefix="perf-analyzer-") as folder:
        environments = [dict(os.environ), _with_cuda_library(Path(folder))]
        complaint = ""
        for environment in environments:
            version, complaint = _start(program, environment)
            if version:
                yield PerfAnalyzer(program, environment, version)
                return
        raise NoPerfAnalyzer(f"{program} does not start: {complaint.splitlines()[0]}")


def _search() -> Path:
    beside = Path(sys.executable).parent / "perf_analyzer"  # a virtual environment need not be on PATH
    found = str(beside) if beside.exists() else shutil.which("perf_analyzer")
    if found is None:
        raise NoPerfAnalyzer("perf_analyzer was found neither beside this Python nor on PATH.")
    return Path(found)


def _start(program: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Its version, or an empty one and the reason why it did not start."""
    try:
        done = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    said = (done.stdout + done.stderr).strip()
    match = re.search(r"Version (\S+)", said)
    return (match[1], "") if done.returncode == 0 and match else ("", said or f"exit code {done.returncode}")


def _with_cuda_library(folder: Path) -> dict[str, str]:
    """This environment, with a folder on the library path that holds libcudart.so.12 under its proper name.

    A wheel's copy has a hash in its name, and lies beside libraries that must not be found instead of the system's.
    """
    environment = dict(os.environ)
    library = _cuda_library()
    if library is not None:
        (folder / "libcudart.so.12").symlink_to(library)
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{folder}:{others}" if others else str(folder)
    return environment


def _cuda_library() -> Path | None:
    """Looks through the packages' lists of files, without importing any of them."""
    for package in CUDA_PACKAGES:
        try:
            listed = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in listed:
            if CUDA_LIBRARY.fullmatch(file.name):
                return Path(str(file.locate())).resolve()
    return None
