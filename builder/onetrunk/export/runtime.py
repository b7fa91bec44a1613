"""An ONNX Runtime of another version, beside the one that is installed: the one that a Triton release has.

Its package is fetched once from the package index, without what it depends on, into a folder of the cache. Files run on
it in processes of their own: a process has room for one ONNX Runtime.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from onetrunk.export.release import Release
from onetrunk.files import cache_root, translate_os_errors
from onetrunk.machine import integer_unit
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError

_FETCH_S = 600.0
_FAULT_CHARACTERS = 300


@dataclass(frozen=True)
class Runtime:
    """An ONNX Runtime.

    Attributes:
        version: Its version.
        packages: The folder of its package; None is the one that is installed.
    """

    version: str
    packages: Path | None = None

    @property
    def measured_by(self) -> str:
        """Its version and the processor's unit for 8-bit integers, on both of which int8 answers depend."""
        return f"ONNX Runtime {self.version}, {integer_unit()}"


def own_runtime() -> Runtime:
    """Return the ONNX Runtime that is installed."""
    return Runtime(onnxruntime.__version__)


def runtime_of(release: Release, cache: Path | None = None, progress: ProgressCallback = silent) -> Runtime:
    """Return the ONNX Runtime of a Triton release, fetching it where it is not in the cache.

    Args:
        release: The release.
        cache: The root folder of all caches; None is the user's own.
        progress: Called when it is fetched.

    Raises:
        UserError: Which version the release has is not known.
        OneTrunkError: It cannot be fetched, or the disk is full or cannot be written.
    """
    version = release.onnxruntime
    if not version.replace(".", "").isdigit():
        raise UserError(
            f"Triton {release.name}: its ONNX Runtime is {version}, and which one exactly is not known: give "
            "--triton-release an older one, or --gate on, which takes the ONNX Runtime that is installed"
        )
    if version == onnxruntime.__version__:
        return own_runtime()
    name = f"onnxruntime-{version}-{sys.implementation.cache_tag}"
    folder = cache_root(cache) / "runtimes" / name
    with translate_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A second process waits for the first, and then finds it.
        with folder.with_name(f".{name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                progress(f"fetching ONNX Runtime {version}, which Triton {release.name} has", 0, 1)
                _fetch(version, folder)
    return Runtime(version, folder)


def _fetch(version: str, folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    # Without its dependencies: of these it needs numpy alone to run a file, and takes the one that is installed.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-input", "--only-binary", ":all:", "--target", str(aside), f"onnxruntime=={version}"]
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_S, check=False
        )
        reason = "" if found.returncode == 0 else (found.stderr.strip().splitlines() or ["pip failed"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"pip did not end in {_FETCH_S:g} s"
    if reason:
        shutil.rmtree(aside, ignore_errors=True)
        raise OneTrunkError(
            f"ONNX Runtime {version} cannot be fetched: {reason[:_FAULT_CHARACTERS]}; --gate on takes the one that is "
            "installed"
        )
    os.replace(aside, folder)
