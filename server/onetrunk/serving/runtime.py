"""The private folder of one Triton process: its backends, and a name for its shared memory."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onetrunk.serving.installation import Installation

OUR_BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Runtime:
    """What belongs to one Triton process only, and goes when it goes."""

    folder: Path
    shm_prefix: str  # begins the name of each of its regions in /dev/shm, and of no other server's

    @property
    def backends(self) -> Path:
        """Triton's `--backend-directory`."""
        return self.folder / "backends"

    @property
    def libraries(self) -> Path:
        """Libraries that the stub needs beside Triton's own."""
        return self.folder / "lib"


def make_runtime(installation: Installation) -> Runtime:
    """Assembles the folder: Triton's Python backend with the right stub, and our `onnxruntime` backend."""
    runtime = Runtime(
        folder=Path(tempfile.mkdtemp(prefix="onetrunk-")),
        shm_prefix=f"onetrunk_{os.getpid()}_{secrets.token_hex(4)}_",
    )
    # Copies, not links: Triton refuses a backend library whose real path lies outside the backend directory.
    ignore = shutil.ignore_patterns("__pycache__")
    python = runtime.backends / "python"
    shutil.copytree(installation.python_backend, python, ignore=ignore)
    stub = shutil.copy(installation.stub, python)
    os.chmod(stub, 0o755)
    shutil.copytree(OUR_BACKENDS, runtime.backends, ignore=ignore, dirs_exist_ok=True)
    runtime.libraries.mkdir()
    if installation.libpython is not None:
        (runtime.libraries / installation.libpython.name).symlink_to(installation.libpython)
    return runtime


def environment(installation: Installation, runtime: Runtime, base: Mapping[str, str]) -> dict[str, str]:
    """Builds the environment of the Triton process from the caller's."""
    libraries = [str(runtime.libraries), str(installation.libraries), base.get("LD_LIBRARY_PATH", "")]
    return {
        **base,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The stub embeds Python and asks the first `python3` on PATH where the packages are.
        "PATH": os.pathsep.join([os.path.join(sys.prefix, "bin"), base.get("PATH", os.defpath)]),
        "ORT_DISABLE_TELEMETRY": "1",
    }
