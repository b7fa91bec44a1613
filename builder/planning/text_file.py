"""A text file that is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from builder.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises UserError where that fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error}") from error
