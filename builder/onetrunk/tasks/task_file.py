"""Task files in TOML, and where the data are that they name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onetrunk.protocol.errors import UserError, did_you_mean
from onetrunk.tasks.formats import is_data_folder, is_data_name
from onetrunk.tasks.records import HUB_PREFIX, Split
from onetrunk.tasks.task import Recipe, Task
from onetrunk.toml_file import explain, read_toml, refuse_unknown_keys

DATA_VARIABLE = "ONETRUNK_DATA"
DEV_SHARE = 0.1
"""The share of texts without labels on which heads are scored, where nothing else is said."""

_TASK_KEYS = tuple(key for key in Task.model_fields if key != "folder")
_RECIPE_KEYS = tuple(Recipe.model_fields)


def load_task(path: Path, *, needs_data: bool = True) -> Task:
    """Read a task file. Its name is the task's name, unless the file gives another.

    Args:
        path: The file.
        needs_data: Whether it must name train data. Without them, ``train`` is empty, and dev data are a share of what
            a teacher labels.

    Raises:
        UserError: The file is missing or not TOML, or one of its keys is unknown or has a value that is not allowed.
    """
    values = read_toml(path, "task file")
    refuse_unknown_keys(path, values, _TASK_KEYS)
    for table, allowed in (("recipe", _RECIPE_KEYS), ("options", ())):
        if isinstance(values.get(table), dict):
            _refuse_keys_of_the_file(path, table, values[table], allowed)
    if isinstance(values.get("recipe"), dict):
        refuse_unknown_keys(path, values["recipe"], _RECIPE_KEYS, "recipe.")
    for key in ("train", "dev", "test"):
        if key in values:
            _check_place(path, key, values[key])
    if not needs_data and "train" not in values:
        values = {"train": "", "dev": DEV_SHARE, **values}
    try:
        return Task.model_validate({"name": path.stem, **values, "folder": path.parent})
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, fault) for fault in error.errors())) from error


def _refuse_keys_of_the_file(path: Path, table: str, values: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse keys that stand below the line of a table, to which they belong so, though they are those of the file."""
    if wrong := [key for key in values if key in _TASK_KEYS and key not in allowed]:
        raise UserError(f"{path}: below [{table}] stands {', '.join(wrong)}, which belongs to the file: put it above")


def _check_place(path: Path, key: str, value: object) -> None:
    """Check a place of data for what it has become between the quotes of TOML.

    Raises:
        UserError: It is a number in quotes, a share where none is allowed, or has characters that no path has.
    """
    if isinstance(value, float) and key != "dev":
        raise UserError(f"{path}: key {key}: found {value:g}: give a file; only dev may be a share of train: dev = 0.2")
    if not isinstance(value, str):
        return
    if re.fullmatch(r"0?\.\d+|\d+(\.\d+)? *%", value.strip()):
        example = "write a share without quotes, as in dev = 0.2" if key == "dev" else "give a file"
        raise UserError(f"{path}: key {key}: found {value!r:.80}: {example}")
    if any(unicodedata.category(one) == "Cc" for one in value):
        raise UserError(
            f"{path}: key {key}: found {value!r:.80}: within double quotes, a backslash and the letter behind it are "
            r"one character; write 'C:\train.csv', in single quotes, or C:/train.csv"
        )


def _explain(path: Path, fault: Any) -> str:
    # For a value of two forms, pydantic names the form that was tried.
    fault = {**fault, "loc": fault["loc"][:1] if fault["loc"][:1] == ("encoding",) else fault["loc"]}
    missing_dev = fault["type"] == "missing" and fault["loc"] == ("dev",)
    return explain(path, fault) + (": name a file, or keep a share of train, as in dev = 0.2" if missing_dev else "")


def find_tasks(folder: Path) -> list[Path]:
    """Return all task files of a folder, by name.

    Raises:
        UserError: There is no such folder, or no task file in it.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise UserError(f"{folder}: no task files (*.toml) here; give --task-dir, or the path of a task file")
    return files


def find_task(name: str, folder: Path) -> Path:
    """Return the file of a task that is named on the command line: a path to a .toml file, or a name in ``folder``.

    Raises:
        UserError: There is no such task.
    """
    given = Path(name)
    if given.suffix.lower() == ".toml":
        if not given.exists():
            hint = did_you_mean(given.name, [file.name for file in sorted(given.parent.glob("*.toml"))])
            raise UserError(f"{given}: no such task file{hint}")
        return given
    if is_data_name(name) or is_data_folder(given):
        raise UserError(
            f"{name} is a data file, not a task file: write a .toml with labels, train and dev (train-head --help has "
            "one) and give that"
        )
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [file.stem for file in find_tasks(folder)]
        raise UserError(
            f"{folder}: no task {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}; a task file "
            f"elsewhere is given by its path, as in my/{given.name}.toml"
        )
    return path


def locate(task: Task, split: Split, data_root: Path | None = None) -> Path | str:
    """Return the file or folder of a split, or its ``hub:`` address. Dev data may be a share of the train data.

    A relative file is looked for in ``data_root`` (or else in the variable ONETRUNK_DATA), then beside the task file,
    then in a folder ``shared`` beside any folder above it, so that checkouts can share one copy of the data.

    Raises:
        UserError: There is no such file; the message names the places that were searched.
    """
    given = {"train": task.train, "dev": task.dev, "test": task.test}[split]
    location = given if isinstance(given, str) else task.train
    if location.startswith(HUB_PREFIX):
        return location
    # Joining an absolute location to a folder leaves it unchanged.
    try:
        relative = Path(location).expanduser()
        places = list(dict.fromkeys(root / relative for root in _roots(task.folder.resolve(), data_root)))
        # A folder of the same name that is no data may be in the way of a file further on.
        for place in (
            *(one for one in places if one.is_file() or is_data_folder(one)),
            *(one for one in places if one.is_dir()),
        ):
            return place
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, or ~ of a user who is not there
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"task {task.name}: {split} {location!r:.200}: no path of a file: {why}") from error
    searched = ", ".join(str(place) for place in places[:4]) + (", ..." if len(places) > 4 else "")
    raise UserError(
        f"task {task.name}: no {split} data {location!r}; looked for {searched}; "
        f"give the folder by --data or {DATA_VARIABLE}"
    )


def _roots(folder: Path, data_root: Path | None) -> list[Path]:
    variable = os.environ.get(DATA_VARIABLE)
    given = data_root or (Path(variable) if variable else None)
    above = [parent / "shared" for parent in (folder, *folder.parents)]
    return [*([given] if given else []), folder, *above]
