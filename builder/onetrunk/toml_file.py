"""A user's TOML: read, and explained in one line where it is wrong: file, key, what was found, what is allowed."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values of a file.

    Args:
        path: the file.
        what: what it is to the user, as in ``task file``, for messages.

    Raises:
        UserError: the file is missing, cannot be read, or is not TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    return values


def refuse_unknown_keys(path: Path, values: Mapping[str, Any], allowed: Collection[str], prefix: str = "") -> None:
    """Raises UserError for the first key that is not allowed. ``prefix`` is the table it stands in, with its dot."""
    for key in values:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise UserError(f"{path}: key {prefix}{key} is not known{hint}; allowed are {', '.join(allowed)}")


def explain(path: Path, fault: Any) -> str:
    """One of pydantic's faults as one line."""
    key = ".".join(str(part) for part in fault["loc"])
    rule = fault["msg"].removeprefix("Value error, ")
    if not key:
        return f"{path}: {rule}"
    if fault["type"] == "missing":
        return f"{path}: key {key} is missing"
    return f"{path}: key {key}: found {fault['input']!r:.80}: {rule[0].lower()}{rule[1:]}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`` (did you mean X?)`` where something known is close to the word, otherwise nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
