"""Installs locks, and the project itself, into the environment that runs it: ``python locks/install.py serving``.

Everything that is downloaded must have one of the hashes of its lock. So pip resolves nothing and builds nothing in an
environment of its own, for which it would check no hash; what has to be built is built with the hatchling and the
setuptools of the locks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

LOCKS = Path(__file__).parent
# Byte code is made when a module is first used, not for all of torch at once.
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
INSTALL = (*PIP, "install", "--no-compile", "--no-deps", "--no-build-isolation")


def main(names: list[str]) -> None:
    """Install the locks of these names; with the one for serving also torch, for which there is none of its own."""
    with ThreadPoolExecutor() as pool:
        # Unpacking torch keeps one core busy for as long as everything else does; the two have no file in common.
        torch = pool.submit(install_torch) if "serving" in names else None
        for name in names:
            install(name)
        if torch is not None:
            torch.result()
    subprocess.run([*INSTALL, "--editable", str(LOCKS.parent)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)


def install(name: str) -> None:
    """Install a lock."""
    subprocess.run([*INSTALL, "--require-hashes", "--requirement", str(LOCKS / f"{name}.txt")], check=True)


def install_torch() -> None:
    """Install torch: its build for CPUs if pip finds it, otherwise the one of the public index, which needs CUDA.

    Any build of the right version that is already there is left alone: its user has chosen it.
    """
    (version,) = re.findall(r"^torch==(\S+)", (LOCKS / "torch.txt").read_text(), re.MULTILINE)
    if installed("torch").partition("+")[0] == version:
        return
    # A refusal is no error, only the way to learn that no index that pip knows has the file.
    for_cpus = [*INSTALL, "--require-hashes", "--requirement", str(LOCKS / "torch_cpu.txt")]
    if subprocess.run(for_cpus, stderr=subprocess.DEVNULL).returncode != 0:
        install("torch")
        install("cuda")


def installed(package: str) -> str:
    """Return the version of a package that is installed, or an empty string."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
