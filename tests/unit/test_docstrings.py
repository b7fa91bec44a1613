"""Docstrings name every parameter of long signatures, and the errors that a function raises itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for root in ("builder", "server", "clients") for path in (ROOT / root / "onetrunk").rglob("*.py"))
MANY_PARAMETERS = 4
OURS = {"OneTrunkError", "ValueError"}
"""The roots of the errors that a caller may see. All errors of the package that derive from them are added below."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def error_names() -> set[str]:
    """The names of all error classes of the package."""
    names, before = set(OURS), 0
    classes = [node for path in SOURCES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    while len(names) > before:
        before = len(names)
        names |= {one.name for one in classes if any(isinstance(b, ast.Name) and b.id in names for b in one.bases)}
    return names - {one.name for one in classes if one.name.startswith("_")}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Public functions and methods of public classes, without click commands: their docstring is their help."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, Function) and not node.name.startswith("_") and not is_command(node):
                yield f"{prefix}{node.name}", node

    return walk(parsed(path).body, "")


def is_command(function: Function) -> bool:
    return any("click" in ast.unparse(one) for one in function.decorator_list)


def parameters(function: Function) -> list[str]:
    arguments = function.args
    named = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls")]


def section(docstring: str, title: str) -> str:
    """The lines of a section of a docstring in Google's convention."""
    found, inside = [], False
    for line in docstring.splitlines():
        if line.strip() == f"{title}:" and not line.startswith("    "):
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            break
        elif inside:
            found.append(line)
    return "\n".join(found)


def own_raises(function: Function) -> set[str]:
    """The names of the errors that the function's own body raises, such as UserError."""
    names = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (Function, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            raised = (
                raised.value if isinstance(raised, ast.Attribute) and isinstance(raised.value, ast.Name) else raised
            )
            names.add(ast.unparse(raised))
        todo += ast.iter_child_nodes(node)
    return names


def overridden() -> set[str]:
    """The names of methods that an abstract base class of the package documents for all of its implementations."""
    return {
        node.name
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, Function) and any("abstractmethod" in ast.unparse(one) for one in node.decorator_list)
    }


def problems(path: Path, errors: set[str], documented: set[str]) -> list[str]:
    found = []
    for name, function in public_functions(path):
        docstring = ast.get_docstring(function) or ""
        if docstring.startswith("See `"):  # An asynchronous twin, or an implementation: documented in one place.
            continue
        wanted = parameters(function)
        described = section(docstring, "Args")
        if len(wanted) >= MANY_PARAMETERS and function.name not in documented:
            missing = [one for one in wanted if f"{one}:" not in described]
            if missing:
                found.append(f"{path.relative_to(ROOT)}:{function.lineno} {name}: no Args for {', '.join(missing)}")
        if own_raises(function) & errors and not section(docstring, "Raises"):
            found.append(f"{path.relative_to(ROOT)}:{function.lineno} {name}: no Raises")
    return found


def test_long_signatures_and_errors_are_documented():
    errors, documented = error_names(), overridden()
    found = [problem for path in SOURCES for problem in problems(path, errors, documented)]
    assert not found, "\n".join(found)


SAMPLE = '''
def short(a, b, c):
    """Do it."""

def long(a, b, c, *, d):
    """Do it.

    Args:
        a: One.
        b: Two.
        c: Three.
    """

def wrong(a):
    """Do it."""
    raise UserError("no")

def right(a):
    """Do it.

    Raises:
        UserError: It cannot.
    """
    raise UserError("no")
'''


@pytest.mark.parametrize("errors", [{"UserError"}])
def test_what_is_not_documented_is_found(tmp_path, monkeypatch, errors):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    assert [problem.split(" ", 1)[1] for problem in problems(tmp_path / "sample.py", errors, set())] == [
        "long: no Args for d",
        "wrong: no Raises",
    ]
