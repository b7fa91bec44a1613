"""``make lock``: resolves pyproject.toml, and writes constraints.txt (versions) and locks/*.txt (versions and hashes).

What constraints.txt names stays as it is while pyproject.toml allows it; with ``--upgrade``, everything becomes the
newest. The locks are for CPython 3.10 to 3.12 on x86-64 Linux, and have the hashes of all files of a version.

torch is apart, since there is a choice of builds. The one of the public index needs CUDA's libraries, which are in
cuda.txt. The builds for CPUs are not there: torch_cpu.txt names them, and is written by hand.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
SERVING = ("builder", "server", "cpu")
EXTRAS = {
    "serving": SERVING,
    "front": ("front", "s3"),
    "developing": (*SERVING, "signing", "tracing", "bench", "hub", "s3", "simulation", "openvino", "dev", "dev-s3"),
    "documenting": ("docs",),
    "auditing": ("audit",),
}
"""Lock -> the extras that it is for."""

UNLOCKED = ("cluster", "gpu")
"""Extras that no lock is for. Their versions are in constraints.txt all the same."""

# hatchling builds the project itself, and setuptools-scm the one package that comes only as a source archive, seqeval.
# Were they not there, pip or setuptools would download the newest of them, for which nobody has checked a hash.
BUILD = "hatchling>=1.25"
BUILD_OF_SOURCES = "setuptools-scm>=8"
HEADER = "# Written by `make lock`.\n"
HASHES = ("--generate-hashes", "--constraints", "constraints.txt")
# What every marker repeats: for which machines the locks are.
MACHINE = (
    r"(?:python_full_version < '3\.13'|sys_platform == 'linux'|platform_machine == 'x86_64'|"
    r"implementation_name == 'cpython'|platform_python_implementation == 'CPython')"
)
CUDA = re.compile(r"cuda-|nvidia-(?!pytriton)|triton$")
"""The packages that only a build of torch for CUDA needs."""


def main() -> None:
    """Write all files.

    Raises:
        SystemExit: The builds of torch for CPUs have to be added by hand.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    newest = ["--upgrade"] if parser.parse_args().upgrade else []
    everything = [*dict.fromkeys(extra for extras in (*EXTRAS.values(), UNLOCKED) for extra in extras)]
    build = f"{BUILD}\n{BUILD_OF_SOURCES}"
    resolve(ROOT / "constraints.txt", *of_extras(everything), *newest, requirements=build)
    resolve(LOCKS / "torch.txt", *HASHES, "--no-deps", requirements="torch")
    cuda = [
        one for one in packages(resolve(LOCKS / "cuda.txt", *HASHES, requirements="torch")) if CUDA.match(name(one))
    ]
    (LOCKS / "cuda.txt").write_text(HEADER + "".join(cuda))
    serving: list[str] = []
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as apart:
        apart.write("\n".join(sorted({name(one) for one in cuda})))
        apart.flush()
        options = (*HASHES, "--excludes", apart.name, "--no-emit-package", "torch")
        for lock, extras in EXTRAS.items():
            # With the lock for serving, since that is installed before the one for developing.
            needed = build if lock in ("serving", "developing") else BUILD
            found = packages(resolve(LOCKS / f"{lock}.txt", *of_extras(extras), *options, requirements=needed))
            if lock == "serving":
                serving = found
            if lock == "developing":  # it is installed with the one for serving
                found = [one for one in found if one not in serving]
            (LOCKS / f"{lock}.txt").write_text(HEADER + "".join(found))
    tokenizers = [one for one in serving if name(one) == "tokenizers"]
    (ROOT / "deploy" / "triton" / "requirements.txt").write_text(HEADER + "".join(tokenizers))
    (torch,) = packages((LOCKS / "torch.txt").read_text())
    if (version := torch.split()[0]) not in (LOCKS / "torch_cpu.txt").read_text():
        raise SystemExit(f"locks/torch_cpu.txt has no {version}: write the hashes of its builds for CPUs there")


def of_extras(names: Sequence[str]) -> list[str]:
    """Return uv's arguments for the project with some extras."""
    return ["pyproject.toml", *(part for extra in names for part in ("--extra", extra))]


def resolve(lock: Path, *arguments: str, requirements: str) -> str:
    """Let uv write a lock, take out of its markers what is true of all machines that it is for, and return its text."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.10", "--no-annotate"]
    named = ["--no-header", "--output-file", str(lock)]
    subprocess.run([*command, *named, *arguments, "-"], input=requirements, text=True, cwd=ROOT, check=True)
    text = re.sub(rf" and {MACHINE}", "", lock.read_text(encoding="utf-8"))
    text = re.sub(rf"(?<=[;(] ){MACHINE} and |(?<=\(){MACHINE} and ", "", text)
    text = HEADER + re.sub(rf" ; {MACHINE}(?=\s)", "", text)
    lock.write_text(text, encoding="utf-8")
    return text


def packages(lock: str) -> list[str]:
    """Return the packages of a lock, each with its hashes."""
    return re.findall(r"^[a-z].*\n(?: .*\n)*", lock, re.MULTILINE)


def name(package: str) -> str:
    """Return the name of a package of a lock."""
    return package.partition("==")[0]


if __name__ == "__main__":
    main()
