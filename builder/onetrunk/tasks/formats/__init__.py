"""The formats of data files. A new one is a file of this folder, and a line of the registry."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import sha256_file
from onetrunk.tasks.data_file import open_data
from onetrunk.tasks.formats.arrow import (
    files_of_folder,
    is_data_folder,
    read_arrow,
    read_folder,
    read_hub,
    read_parquet,
)
from onetrunk.tasks.formats.conll import conll_sentences
from onetrunk.tasks.formats.json_rows import json_objects
from onetrunk.tasks.formats.tables import comma_separated, tab_separated
from onetrunk.tasks.records import Reading, Records

_TEXT_FILES: dict[str, Callable[[BinaryIO, Path, Reading], Records]] = {
    ".jsonl": json_objects,
    ".ndjson": json_objects,
    ".json": json_objects,
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".conll": conll_sentences,
    ".bio": conll_sentences,
    ".iob": conll_sentences,
}
_BINARY_FILES: dict[str, Callable[[Path, Reading], Records]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
_INSTEAD = {
    ".xlsx": "save it as CSV UTF-8",
    ".xls": "save it as CSV UTF-8",
    ".ods": "save it as CSV in UTF-8",
    ".txt": "if it is a table with tabs, call it .tsv; if it has a word and a tag a line, call it .conll",
    ".zip": "unpack it",
    ".bz2": "unpack it",
    ".xz": "unpack it",
    ".zst": "unpack it",
}


def read_records(path: Path, reading: Reading | None = None) -> Records:
    """Yield the rows of a data file, or of a folder, whose format follows from its name.

    Tables begin with a header. Blank lines are skipped.

    Args:
        path: The file or folder.
        reading: How it is to be read; notes on what turned out are added to it. None is without any keys of a task.

    Raises:
        UserError: The format is unknown, the file cannot be read to its end, a table has no header, or a row or what a
            .gz unpacks to is larger than any data.
    """
    reading = reading if reading is not None else Reading()
    if path.is_dir():
        yield from read_folder(path, reading)
        return
    name = path.name.lower()
    binary = next((reader for suffix, reader in _BINARY_FILES.items() if name.endswith(suffix)), None)
    if binary is not None:
        yield from binary(path, reading)
        return
    unpacked = name.removesuffix(".gz")
    reader = next((reader for suffix, reader in _TEXT_FILES.items() if unpacked.endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path}: {_unknown(unpacked)}")
    line = 0
    try:
        with open_data(path, reading.encoding) as stream:
            for record in reader(stream, path, reading):
                line = record.line
                yield record
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        # A truncated file is not one bad row: whatever came after this line is unknown.
        raise UserError(f"{path}: cannot be read beyond line {line}: {error}") from error


def _unknown(name: str) -> str:
    hint = next((f": {instead}" for suffix, instead in _INSTEAD.items() if name.endswith(suffix)), "")
    return (
        f"not a known data format{hint}; allowed are {', '.join(_TEXT_FILES)}, each also with .gz, "
        f"{', '.join(_BINARY_FILES)}, and folders of datasets.save_to_disk"
    )


def is_data_name(name: str) -> bool:
    """Return whether a file of this name would be read as task data."""
    return name.lower().removesuffix(".gz").endswith((*_TEXT_FILES, *_BINARY_FILES))


def sha256_of(path: Path, reading: Reading) -> str:
    """Return the hash of a data file's bytes; of a folder, that of the files that are read.

    Raises:
        UserError: The file is no regular file, or the folder is none that can be read.
    """
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in files_of_folder(path, reading):
        digest.update(sha256_file(file, inside=path).encode())
    return digest.hexdigest()


__all__ = ["is_data_folder", "is_data_name", "read_hub", "read_records", "sha256_of"]
