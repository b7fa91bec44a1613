"""Task files: TOML in, ``Task`` out, or a message with file, key, what was found and what is allowed."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from builder.errors import UserError
from builder.tasks.recipe import Recipe
from builder.tasks.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TASK_KEYS = tuple(key for key in Task.model_fields if key != "folder")
_RECIPE_KEYS = tuple(Recipe.model_fields)


def load_task(path: Path) -> Task:
    """Reads a task file. Its name is the task's name, unless the file gives another.

    Raises:
        UserError: the file is missing, not TOML, or a key of it is unknown or has a value that is not allowed.
    """
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such task file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    _refuse_unknown_keys(path, values, _TASK_KEYS, "")
    if isinstance(values.get("recipe"), dict):
        _refuse_unknown_keys(path, values["recipe"], _RECIPE_KEYS, "recipe.")
    try:
        return Task.model_validate({"name": path.stem, **values, "folder": path.parent})
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, fault) for fault in error.errors())) from error


def find_tasks(folder: Path) -> list[Path]:
    """All task files of a folder, by name.

    Raises:
        UserError: there is no such folder, or no task file in it.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise UserError(f"{folder}: no task files (*.toml) here; give --task-dir")
    return files


def find_task(name: str, folder: Path) -> Path:
    """The file of a task that was named on the command line: a path to a .toml file, or a name in ``folder``.

    Raises:
        UserError: there is no such task.
    """
    if name.endswith(".toml"):
        return Path(name)
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [file.stem for file in find_tasks(folder)]
        raise UserError(f"{folder}: no task {name!r}{_did_you_mean(name, known)}; there are: {', '.join(known)}")
    return path


def _refuse_unknown_keys(path: Path, values: dict[str, Any], allowed: Collection[str], prefix: str) -> None:
    for key in values:
        if key not in allowed:
            hint = _did_you_mean(key, allowed)
            raise UserError(f"{path}: key {prefix}{key} is not known{hint}; allowed are {', '.join(allowed)}")


def _explain(path: Path, fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    rule = fault["msg"].removeprefix("Value error, ")
    if not key:
        return f"{path}: {rule}"
    if fault["type"] == "missing":
        return f"{path}: key {key} is missing"
    return f"{path}: key {key}: found {fault['input']!r:.80}: {rule[0].lower()}{rule[1:]}"


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
