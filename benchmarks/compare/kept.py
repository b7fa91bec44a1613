"""What a comparison makes once and keeps: trunks, checkpoints, ONNX files, repositories. They take gigabytes."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onetrunk.files import translate_os_errors
from onetrunk.protocol.reading import sha256_file

ROOT = Path(__file__).resolve().parents[2]
# Of what is kept, all that the content of a file depends on; the default trunk's own files are named by their SHA-256
# in onetrunk.nn.trunk. More than is strictly needed: making all anew takes minutes, a stale file would cost a result.
_SOURCES = (
    "benchmarks/compare",
    "benchmarks/peers",
    "builder/onetrunk/distill",
    "builder/onetrunk/export",
    "builder/onetrunk/nn",
)
_LIBRARIES = ("onnx", "onnxruntime", "torch", "transformers")


def kept_folder(work: Path, root: Path = ROOT) -> Path:
    """The folder below ``work`` for what this code makes with these libraries. Those of others are deleted.

    Raises:
        OneTrunkError: it cannot be made, or an older one cannot be deleted.
    """
    folder = work / f"made_{_key(root)}"
    with translate_os_errors(folder):
        if not folder.exists():
            for older in work.glob(f"made_{'[0-9a-f]' * 12}"):
                shutil.rmtree(older)
            folder.mkdir(parents=True)
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a place beside a folder that is not there yet to write to, and moves it into place at the end.

    A folder that is there is whole, then, whatever ended its maker.

    Raises:
        OneTrunkError: see ``translate_os_errors``.
    """
    aside = folder.with_name(f".{folder.name}.part")
    with translate_os_errors(folder):
        # What is left of a maker that was ended.
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, folder)


def _key(root: Path) -> str:
    digest = hashlib.sha256()
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.import_module(library).__version__}\n".encode())
    files = (file for source in _SOURCES for file in (root / source).rglob("*") if file.suffix in (".py", ".txt"))
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:12]
