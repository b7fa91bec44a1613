"""README and docs name only what exists: modules, commands, options, files, and links.

docs/results is only checked for links, since its pages record the commands of their time. Decision 0009 is left out
because it compares the names before and after.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from onetrunk.toml_file import tomllib

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [ROOT / "builder", ROOT / "server", ROOT / "clients"]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [page for page in PAGES if "results" not in page.relative_to(ROOT).parts and not page.name.startswith("0009")]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMAND = re.compile(r"\b(?:[a-z]+-(?:heads?|repo))\b")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def module_file(dotted: str) -> Path | None:
    path = Path(*dotted.split("."))
    for root in SOURCES:
        for file in (root / path.with_suffix(".py"), root / path / "__init__.py"):
            if file.is_file():
                return file
    return None


def bound_names(file: Path) -> set[str]:
    """Every name that a module's text binds, wherever in the module, and what its ``__all__`` lists."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update((alias.asname or alias.name) for alias in node.names)
    return names


def unresolved(dotted: str) -> str | None:
    """What of a dotted name does not exist, or None."""
    parts = dotted.split(".")
    for length in range(len(parts), 1, -1):
        file = module_file(".".join(parts[:length]))
        if file is not None:
            rest = parts[length:]
            return f"{'.'.join(parts[:length])} has no {rest[0]}" if rest and rest[0] not in bound_names(file) else None
    return None if parts == ["onetrunk"] else f"no module {dotted}"


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of code blocks and code spans, as words without comments."""
    spans = re.findall(r"`([^`\n]+)`", text)
    for line in [*re.findall(r"^    (\S.*)$", text, re.MULTILINE), *spans]:
        if COMMAND.match(line):
            yield shlex.split(line, comments=True)


def load_command(words: list[str]) -> click.Command:
    """The command that the words call: of a group, the subcommand."""
    module, _, attribute = SCRIPTS[words[0]].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    if isinstance(command, click.Group) and len(words) > 1:
        assert words[1] in command.commands, words
        command = command.commands[words[1]]
    assert isinstance(command, click.Command)
    return command


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_dotted_names_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dotted = re.findall(r"(?<![\w/.-])onetrunk(?:\.[A-Za-z_]\w*)+", text)
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                dotted += [f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("onetrunk")]
    faults = [fault for name in dotted if (fault := unresolved(name))]
    assert not faults


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_commands_and_options_exist(page: Path) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        assert words[0] in SCRIPTS, words
        known = {option for parameter in load_command(words).params for option in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, words


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_files_of_the_repository_exist(page: Path) -> None:
    folders = "builder|server|clients|tests|benchmarks|docs|examples|deploy|tasks"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_examples_parse(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks(text, "python"):
        ast.parse(block)
    for block in blocks(text, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    dead = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not dead


@pytest.mark.parametrize("page", [page for page in PAGES if "docs" in page.relative_to(ROOT).parts], ids=page_id)
def test_pages_of_the_site_link_to_pages_of_the_site(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    here = [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert [str(target) for target in here if target.is_file() and not target.is_relative_to(ROOT / "docs")] == []


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in SCRIPTS if f"| `{name}` |" not in readme] == []


def test_packages_of_the_api_reference_list_their_public_names() -> None:
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name, options in re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", page.read_text(), re.MULTILINE):
            file = module_file(name)
            assert file is not None, name
            if file.name == "__init__.py" and "show_submodules: true" not in options:
                assert "__all__" in bound_names(file), f"{name}: without __all__, its page would be empty"
