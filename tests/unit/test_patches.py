"""What a test patches: names of one module, and never what all threads of the process share."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def is_shared(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def shared_names(tree: ast.Module) -> set[str]:
    """The names under which a file knows modules of the standard library, and what it has from these."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names if is_shared(alias.name)}
        elif isinstance(node, ast.ImportFrom) and is_shared(node.module or ""):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def shared_patches(code: str) -> list[int]:
    """The lines that patch an attribute of a module or class of the standard library."""
    tree = ast.parse(code)
    shared = shared_names(tree) | sys.stdlib_module_names
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            target = node.args[0]
            if isinstance(target, ast.Constant):  # a path that ends with the attribute
                path = str(target.value).split(".")[:-1]
            else:
                path = ast.unparse(target).split(".")
            # `os`, `watchdog.os`, `install.Path`, `installation.ctypes.util`
            if shared.intersection(path):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "patch",
    ['os, "replace"', 'watchdog.time, "monotonic"', 'install.Path, "mkdir"', '"ours.module.ctypes.util.find_library"'],
)
def test_such_a_patch_is_found(patch: str) -> None:
    code = f"import os\nfrom pathlib import Path\nmonkeypatch.setattr({patch}, None)\n"
    assert shared_patches(code) == [3]


def test_no_test_patches_what_threads_share() -> None:
    found = [
        f"{file.relative_to(TESTS.parent)}:{line}"
        for file in sorted(TESTS.rglob("*.py"))
        for line in shared_patches(file.read_text(encoding="utf-8"))
    ]
    assert found == [], "patch the name in the module under test: see tests/fixtures/stand_ins.py"
