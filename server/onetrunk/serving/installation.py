"""The Triton in the package nvidia-pytriton, found without importing it, and the private folder of a process."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import secrets
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.settings import TritonAddress

# What the models import, and which of the project's extras brings it.
NEEDED = {
    "pytriton": ("Triton", "pip install -e '.[server]' in the checkout"),
    "tokenizers": ("tokenizers", "pip install -e '.[server]' in the checkout"),
    "onnxruntime": ("ONNX Runtime", "pip install -e '.[cpu]' in the checkout (or [gpu], for CUDA)"),
}


@dataclass(frozen=True)
class Installation:
    """The parts of a Triton on disk."""

    binary: Path
    python_backend: Path  # folder with libtriton_python.so and its Python module
    stub: Path  # the program that runs a Python model, for this version of Python
    libraries: Path  # shared libraries that Triton was linked against
    libpython: Path | None  # the stub's libpython, if the dynamic linker would not find it by itself


def find_triton() -> Installation:
    """Find Triton in the running environment.

    Raises:
        UserError: Triton, or a package that the models import, is not installed, or not for this version of Python.
    """
    folders = {}
    for name, (what, hint) in NEEDED.items():
        folder = package_folder(name)
        if folder is None:
            raise UserError(f"{what} is not installed in this environment: {hint}")
        folders[name] = folder
    package = folders["pytriton"]
    triton = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        found = ", ".join(sorted(path.name for path in stub.parents[1].glob("*"))) or "none"
        raise UserError(f"nvidia-pytriton has no Python backend for Python {version} (it has: {found})")
    return Installation(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=stub,
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython=find_libpython(version),
    )


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def find_libpython(version: str) -> Path | None:
    """Find the shared libpython that the stub is linked against.

    Pythons of conda, uv and python.org keep it in their own folder, where the dynamic linker does not look. Debian and
    Ubuntu have a package for it. pyenv does not build it by default.

    Returns:
        Its path, or None if the dynamic linker finds it without help.

    Raises:
        UserError: There is none.
    """
    name = f"libpython{version}.so.1.0"
    folders = [Path(sys.base_prefix) / "lib", Path(sysconfig.get_config_var("LIBDIR") or "/")]
    own = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if own is not None:
        return own
    if ctypes.util.find_library(f"python{version}") is None:
        raise UserError(
            f"Triton's Python backend needs {name}, which this machine lacks: "
            f"apt-get install libpython{version} (Debian, Ubuntu), or a Python that brings it (uv, conda)"
        )
    return None


# The kernel takes names of sockets of at most 107 bytes.
MAX_SOCKET_FOLDER = 80

OUR_BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Runtime:
    """What belongs to one Triton process only, and is removed with it."""

    folder: Path
    shm_prefix: str  # begins the name of each of its regions in /dev/shm, and of no other server's

    @property
    def backends(self) -> Path:
        """Triton's `--backend-directory`."""
        return self.folder / "backends"

    @property
    def sockets(self) -> TritonAddress:
        """Where Triton listens."""
        return TritonAddress(folder=self.folder)

    @property
    def libraries(self) -> Path:
        """The libraries that the stub needs beside Triton's own."""
        return self.folder / "lib"


def make_runtime(installation: Installation) -> Runtime:
    """Create the folder, with Triton's Python backend, the right stub, and this project's `onnxruntime` backend.

    Raises:
        UserError: There is no room for it. Nothing of it is left.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="onetrunk-"))  # which nobody else may enter
        if len(str(folder)) > MAX_SOCKET_FOLDER:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="onetrunk-", dir="/tmp"))
        runtime = Runtime(folder, shm_prefix=f"onetrunk_{os.getpid()}_{secrets.token_hex(4)}_")
        _fill(runtime, installation)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        parent = folder.parent if folder is not None else tempfile.gettempdir()
        raise UserError(
            f"{parent} has no room for Triton's backends ({_reason(error)}): make some, or choose another with TMPDIR"
        ) from None
    return runtime


def _reason(error: OSError) -> str:
    """Return an error's reason without paths. `copytree` collects (source, target, error as text) of every file."""
    if not isinstance(error, shutil.Error):
        return error.strerror or str(error)
    found = re.match(r"\[Errno \d+\] ([^:]+)", str(error.args[0][0][2]))
    return found[1] if found else str(error.args[0][0][2])


def _fill(runtime: Runtime, installation: Installation) -> None:
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


_OF_THE_LAUNCHER = ("ONETRUNK_", "AWS_")


def environment(installation: Installation, runtime: Runtime, base: Mapping[str, str]) -> dict[str, str]:
    """Build the environment of the Triton process from the caller's."""
    # The models' code needs none of the launcher's settings, and must not find its keys.
    base = {name: value for name, value in base.items() if not name.startswith(_OF_THE_LAUNCHER)}
    libraries = [str(runtime.libraries), str(installation.libraries), base.get("LD_LIBRARY_PATH", "")]
    return {
        **base,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The stub embeds Python and asks the first `python3` on PATH where the packages are.
        "PATH": os.pathsep.join([os.path.join(sys.prefix, "bin"), base.get("PATH", os.defpath)]),
        "ORT_DISABLE_TELEMETRY": "1",
    }
