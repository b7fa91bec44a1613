"""An ONNX Runtime of another version, beside the one that is installed: the one that a Triton release has.

Its package is fetched once from the package index, which is trusted as when packages are installed, without what it
depends on, into a folder of the cache. Files run on it in processes of their own: a process has room for one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from onetrunk.export.release import Release
from onetrunk.export.sessions import computes_in_bf16, openvino_version
from onetrunk.files import cache_root, translate_os_errors
from onetrunk.machine import environment_for_others, integer_unit
from onetrunk.package_index import check_pip, pip_failure
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import Precision

_FETCH_S = 600.0
# In every release of it; its folder is no ONNX Runtime without.
_MODULE = Path("onnxruntime") / "__init__.py"


@dataclass(frozen=True)
class Runtime:
    """An ONNX Runtime.

    Attributes:
        version: Its version.
    """

    version: str = onnxruntime.__version__

    def measured_by(self, precision: Precision) -> str:
        """Return what the answers of reduced files depend on: versions, and the processor's units for the numbers.

        Args:
            precision: What the files compute in.
        """
        parts = [f"ONNX Runtime {self.version}"]
        if precision.uses("int8"):
            parts.append(integer_unit())
        if precision.uses("bf16"):
            parts.append(f"OpenVINO plugin {openvino_version()}" if computes_in_bf16() else "fp32 for bf16")
        return ", ".join(parts)

    def fetch(self, cache: Path | None = None, progress: ProgressCallback = silent) -> Path | None:
        """Return the folder of its package, fetching it where it is not in the cache; None if it is installed.

        Args:
            cache: The root folder of all caches; None is the user's own.
            progress: Called when it is fetched.

        Raises:
            OneTrunkError: It cannot be fetched, or the disk is full or cannot be written.
        """
        if self == Runtime():
            return None
        name = f"onnxruntime-{self.version}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        folder = cache_root(cache) / "runtimes" / name
        with translate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # A second process waits for the first, and then finds it.
            with folder.with_name(f".{name}.lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / _MODULE).is_file():
                    progress(f"fetching ONNX Runtime {self.version}", 0, 1)
                    self._install(folder)
        return folder

    def _install(self, folder: Path) -> None:
        what = f"ONNX Runtime {self.version}"
        check_pip(what)
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        # Without its dependencies: of these it needs numpy alone to run a file, and takes the one that is installed.
        command = [sys.executable, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-input", "--only-binary", ":all:", "--target", str(aside), f"onnxruntime=={self.version}"]
        try:
            found = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_FETCH_S,
                check=False,
                env=environment_for_others(),
            )
        except subprocess.TimeoutExpired:
            shutil.rmtree(aside, ignore_errors=True)
            raise OneTrunkError(f"{what}: pip did not end in {_FETCH_S:g} s: check the network") from None
        if found.returncode != 0:
            shutil.rmtree(aside, ignore_errors=True)
            raise OneTrunkError(pip_failure(what, found.stdout))
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
        os.replace(aside, folder)


def runtime_of(release: Release) -> Runtime:
    """Return the ONNX Runtime of a Triton release.

    Args:
        release: The release.

    Raises:
        UserError: Which version the release has is not known.
    """
    if not release.has_known_runtime:
        raise UserError(
            f"Triton {release.name}: its ONNX Runtime is {release.onnxruntime}, and which one exactly is not known: "
            "build for an older release, or let the gate measure by the ONNX Runtime that is installed"
        )
    return Runtime(release.onnxruntime)
