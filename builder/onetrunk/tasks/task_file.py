"""Task files: TOML in, ``Task`` out, or a message with file, key, what was found and what is allowed."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.recipe import Recipe
from onetrunk.tasks.task import Task
from onetrunk.toml_file import did_you_mean, explain, read_toml, refuse_unknown_keys

_TASK_KEYS = tuple(key for key in Task.model_fields if key != "folder")
_RECIPE_KEYS = tuple(Recipe.model_fields)


def load_task(path: Path) -> Task:
    """Reads a task file. Its name is the task's name, unless the file gives another.

    Raises:
        UserError: the file is missing, not TOML, or a key of it is unknown or has a value that is not allowed.
    """
    values = read_toml(path, "task file")
    refuse_unknown_keys(path, values, _TASK_KEYS)
    if isinstance(values.get("recipe"), dict):
        refuse_unknown_keys(path, values["recipe"], _RECIPE_KEYS, "recipe.")
    try:
        return Task.model_validate({"name": path.stem, **values, "folder": path.parent})
    except ValidationError as error:
        raise UserError("\n".join(explain(path, fault) for fault in error.errors())) from error


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
        raise UserError(f"{folder}: no task {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    return path
