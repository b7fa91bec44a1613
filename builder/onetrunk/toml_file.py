"""A user's TOML: reading it, and explaining in one line what is wrong: file, key, what was found, what is allowed."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import UserError, did_you_mean
from onetrunk.protocol.reading import read_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A task file with as many labels as are allowed, with 100 bytes each, takes a quarter of it.
_MAX_BYTES = 4 * 2**20


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: What it is to the user, such as ``task file``, for messages.

    Raises:
        UserError: The file is missing, is no regular file, is too large, cannot be read, or is not TOML.
    """
    text = ""
    try:
        text = read_regular(path, max_bytes=_MAX_BYTES).decode("utf-8-sig")
        values: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: it is not UTF-8 ({error.reason}): save it in UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or endless brackets
        raise UserError(f"{path}: not TOML: {error}{_backslash_hint(text, str(error))}") from error
    return values


def _backslash_hint(text: str, fault: str) -> str:
    """Return what to do about a path of Windows between double quotes, in which a backslash begins an escape."""
    place = re.search(r"at line (\d+)", fault)
    lines = text.splitlines()
    line = lines[int(place[1]) - 1] if place and int(place[1]) <= len(lines) else ""
    if re.search(r'"[^"]*\\[^"\\]', line):
        return r": a backslash begins an escape there; write 'C:\train.csv', in single quotes, or C:/train.csv"
    return ""


def refuse_unknown_keys(path: Path, values: Mapping[str, Any], allowed: Collection[str], prefix: str = "") -> None:
    """Check the keys of a file or of one of its tables.

    Args:
        path: The file.
        values: The keys and their values.
        allowed: The keys that are allowed.
        prefix: The table in the file, with its dot, such as ``recipe.``; empty for the file itself.

    Raises:
        UserError: A key is not allowed; the message names the first one.
    """
    for key in values:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise UserError(f"{path}: key {prefix}{key} is not known{hint}; allowed are {', '.join(allowed)}")


def explain(path: Path, fault: Any) -> str:
    """Return one of pydantic's errors as one line."""
    key = ".".join(str(part) for part in fault["loc"])
    rule = fault["msg"].removeprefix("Value error, ")
    if not key:
        return f"{path}: {rule}"
    if fault["type"] == "missing":
        return f"{path}: key {key} is missing"
    hint = ""
    if fault["type"] == "literal_error":
        # The values that are allowed are only in a text: 'single' or 'pair'.
        hint = did_you_mean(str(fault["input"]), re.findall("'([^']+)'", fault["ctx"]["expected"]))
    return f"{path}: key {key}: found {fault['input']!r:.80}{hint}: {rule[0].lower()}{rule[1:]}"
