"""Parquet, Arrow, folders of ``datasets.save_to_disk``, and data sets of a Hugging Face hub.

The names of labels that are stored as numbers are stored with them, as features. pyarrow alone reads all files;
``datasets`` is needed for the hub.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular, read_json, resolve_inside
from onetrunk.tasks.data_file import metered, row_lines
from onetrunk.tasks.formats import arrow_process
from onetrunk.tasks.records import HUB_PREFIX, Reading, Record, Split

Form = Literal["Parquet", "Arrow"]

# Threads reserve memory that counts toward the bound.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX", "ARROW_IO_THREADS"), "1")
_ONE_THREAD |= {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_MAX_JSON_BYTES = 64 * 2**20
_FILES, _INFO, _PARTS = "state.json", "dataset_info.json", "dataset_dict.json"
_NAMES_OF_SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}

_HUB_ADDRESS = re.compile(r"(?P<dataset>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))(#(?P<split>[\w.-]+))?")
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}

Names = Mapping[str, "list[str]"]


def read_hub(address: str, split: Split) -> Iterator[Record]:
    """Yield the rows of a hub's data set, with the names of labels in place of their numbers if the data set has names.

    Args:
        address: ``hub:DATASET/CONFIG`` or ``hub:OWNER/DATASET/CONFIG``, followed by ``#SPLIT`` unless the split is
            called ``train`` or ``validation``. The configuration of a data set without any is called ``default``.
        split: The split of the task.

    Raises:
        UserError: The address is malformed, ``datasets`` is not installed, or the hub did not return the data.
    """
    match = _HUB_ADDRESS.fullmatch(address.removeprefix(HUB_PREFIX))
    if match is None:
        raise UserError(f"{address}: give hub:DATASET/CONFIG or hub:OWNER/DATASET/CONFIG, with #SPLIT if necessary")
    datasets = _package("datasets", address)
    try:
        rows = datasets.load_dataset(match["dataset"], match["config"], split=match["split"] or _HUB_SPLITS[split])
    except Exception as error:  # the package raises many types, from network errors to unknown names
        raise UserError(f"{address}: the hub did not return it: {_reason(error)}") from error
    names = {field: found for field, feature in rows.features.items() if (found := _label_names(feature))}
    for number, row in enumerate(rows, start=1):
        yield Record(number, _with_names(row, names), "row")


def read_parquet(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield the rows of a Parquet file, in the columns that are wanted.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read.
    """
    yield from _isolated(path, "Parquet", reading, {}, 1)


def read_arrow(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield the rows of an Arrow file, which may be a stream.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read.
    """
    yield from _isolated(path, "Arrow", reading, {}, 1)


def is_data_folder(path: Path) -> bool:
    """Return whether a folder looks as if ``datasets.save_to_disk`` had written it."""
    return path.is_dir() and any((path / name).is_file() for name in (_FILES, _PARTS))


def read_folder(folder: Path, reading: Reading) -> Iterator[Record]:
    """Yield the rows of a folder of ``datasets.save_to_disk``, or of the split in it that goes by the name of ours.

    Raises:
        UserError: It is no such folder, has no such split, pyarrow is not installed, or its files cannot be read.
    """
    part = _part(folder, reading)
    names = _names_of_features(_json(part, _INFO).get("features"))
    row = 1
    for file in _data_files(part):
        for record in _isolated(file, "Arrow", reading, names, row):
            row = record.line + 1
            yield record


def files_of_folder(folder: Path, reading: Reading) -> list[Path]:
    """Return the files that ``read_folder`` reads, in their order.

    Raises:
        UserError: It is no folder of ``datasets.save_to_disk``, has no such split, or a file of it is missing.
    """
    part = _part(folder, reading)
    if not (part / _INFO).exists():
        raise _missing(part, _INFO)
    return [part / _INFO, part / _FILES, *_data_files(part)]


def _data_files(part: Path) -> list[Path]:
    state = _json(part, _FILES)
    if state.get("_indices_data_files") or not isinstance(files := state.get("_data_files"), list):
        raise UserError(f"{part}: {_FILES} names no files that can be read as they are: save the data set once more")
    found = []
    for file in files:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{part}: {_FILES} has {file!r:.60} among its files")
        found.append(resolve_inside(part, name))
        if not found[-1].exists():
            raise UserError(
                f"{part}: {_FILES} names the file {name!r:.80}, and it is missing: copy the folder whole, or save the "
                "data set once more"
            )
    return found


def _part(folder: Path, reading: Reading) -> Path:
    """Return the folder of one split, which is the folder itself if it has no splits."""
    if not (folder / _PARTS).is_file():
        return folder
    found = _json(folder, _PARTS).get("splits")
    splits = [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
    name = next((name for name in _NAMES_OF_SPLITS[reading.split] if name in splits), None)
    if name is None:
        raise UserError(
            f"{folder}: no split for {reading.split}; there are {', '.join(splits)!s:.200}: name one, as in "
            f"{folder.name}/{splits[0] if splits else 'test'!s:.40}"
        )
    return resolve_inside(folder, name)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = read_json(folder / name, max_bytes=_MAX_JSON_BYTES, inside=folder)
    except FileNotFoundError:
        raise _missing(folder, name) from None
    except ValueError as error:
        raise UserError(f"{folder / name} is not JSON that can be used: {error}") from error
    return found if isinstance(found, dict) else {}


def _missing(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder}: a folder is read if datasets.save_to_disk wrote it, and {name} is missing; name a file in it, or "
        "save it so"
    )


def _isolated(path: Path, form: Form, reading: Reading, names: Names, first: int) -> Iterator[Record]:
    """Yield the rows that a process with a bound on its memory reads; see ``arrow_process``."""
    _package("pyarrow.parquet" if form == "Parquet" else "pyarrow.ipc", str(path))
    wanted = list(dict.fromkeys(reading.wanted))
    command = [sys.executable, "-I", arrow_process.__file__, form, json.dumps(wanted)]
    with _open(path) as source:
        size = os.fstat(source.fileno()).st_size
        process = subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD}
        )
    try:
        stream = metered(cast(BinaryIO, process.stdout), size, path, "save them as CSV")
        number, ended = first, False
        for line in row_lines(stream, path):
            if not line.endswith(b"\n"):
                break  # cut off with the process
            kind, value = json.loads(line)
            if kind == "row":
                yield Record(number, _with_names(value, names), "row")
                number += 1
            elif kind == "schema":
                names = {**_stored_names(value), **names}
            elif kind == "fault":
                raise UserError(f"{path}: cannot be read as {form}: {value}")
            else:
                ended = True
        if not ended:
            raise UserError(f"{path}: cannot be read as {form}: the process that read it ended ({process.wait()})")
    finally:
        process.kill()
        process.communicate()


def _open(path: Path) -> Any:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None


def _with_names(row: Mapping[str, Any], names: Names) -> dict[str, object]:
    return {field: _named(value, names.get(field)) for field, value in row.items()}


def _named(value: Any, names: list[str] | None) -> object:
    if names is not None and isinstance(value, list):
        return [_named(one, names) for one in value]
    # A hub marks rows without a label by -1, which stays as it is and is reported as an unknown label.
    is_index = names is not None and isinstance(value, int) and 0 <= value < len(names)
    return names[value] if names is not None and is_index else value


def _label_names(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel``, or of a list of them, as tags and several labels of a text have it."""
    if isinstance(feature, list):
        feature = feature[0] if len(feature) == 1 else None
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _stored_names(features: str) -> Names:
    """Return the names of labels that ``datasets`` has stored in a schema."""
    try:
        return _names_of_features(json.loads(features)["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _names_of_features(features: Any) -> dict[str, list[str]]:
    found = {}
    for field, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[field] = names
    return found


def _package(module: str, place: str) -> Any:
    """Import a package that is not always installed, or say what to install. A broken one is another fault than none.

    Raises:
        UserError: It is not installed, or cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)  # first, so that one that is missing is told by its own name
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise UserError(f"{place}: needs the package {package}: pip install 'onetrunk[hub]'") from None
        reason = _reason(error)
    except Exception as error:  # a package that does not fit another one raises what it likes
        reason = _reason(error)
    raise UserError(
        f"{place}: {package} is installed, but cannot be imported: {reason}: "
        "pip install 'onetrunk[hub]' -c constraints.txt installs one that can"
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
