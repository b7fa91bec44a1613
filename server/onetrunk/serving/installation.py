"""Finds the Triton that the package nvidia-pytriton carries, without importing that package."""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.errors import UserError

# What the models import, and which of the project's extras brings it.
NEEDED = {
    "pytriton": ("Triton", "pip install -e '.[server]' in the checkout"),
    "tokenizers": ("tokenizers", "pip install -e '.[server]' in the checkout"),
    "onnxruntime": ("ONNX Runtime", "pip install -e '.[cpu]' in the checkout (or [gpu], for CUDA)"),
}


@dataclass(frozen=True)
class Installation:
    """Where the parts of a Triton lie."""

    binary: Path
    python_backend: Path  # folder with libtriton_python.so and its Python module
    stub: Path  # the program that runs a Python model, for the running Python version
    libraries: Path  # shared libraries that Triton was linked against
    libpython: Path | None  # the stub's libpython, where the dynamic linker would not find it by itself


def find_triton() -> Installation:
    """Finds Triton in the running environment.

    Raises:
        UserError: It or what the models import is not installed, or not for this Python; the message says what to do.
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
    """Finds an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def find_libpython(version: str) -> Path | None:
    """Finds the shared libpython that the stub is linked against.

    Pythons of conda, uv and python.org keep it in their own folder, where the dynamic linker does not look; Debian
    and Ubuntu keep it in a package of its own; pyenv builds none unless told to.

    Returns:
        Its path, or None where the dynamic linker finds it without help.

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
