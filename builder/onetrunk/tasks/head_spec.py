"""Bundles' ``head.json``, checked against the kinds of task. Read without torch."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError, model_validator

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON, HeadJson
from onetrunk.tasks.kinds import get_kind


class HeadSpec(HeadJson):
    """``head.json`` whose answer fits its kind: what every bundle that is read or written must be."""

    @model_validator(mode="after")
    def _answer_fits_kind(self) -> HeadSpec:
        get_kind(self.kind).check(self)
        return self


def read_spec(folder: Path, *, any_folder: bool = False) -> HeadSpec:
    """Reads a folder's head.json.

    Args:
        folder: the folder, with the name of its task.
        any_folder: whether it may have another name, as a candidate's has.

    Raises:
        UserError: the file is missing, broken or of another schema.
    """
    path = folder / HEAD_JSON
    try:
        spec = HeadSpec.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{folder}: no head.json in it, so it is not a bundle") from None
    except ValidationError as error:
        first = error.errors()[0]
        rule = first["msg"].removeprefix("Value error, ")
        # Of all fields together: what was found would be the whole file.
        if not first["loc"]:
            raise UserError(f"{path}: {rule}") from error
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {rule} (found {first['input']!r:.80})") from error
    except (ValueError, RecursionError) as error:  # brackets without end
        raise UserError(f"{path} is not JSON: {error}") from error
    if spec.task != folder.name and not any_folder:
        raise UserError(f"{path}: its task is {spec.task!r}; a bundle's folder has the name of its task")
    return spec


def find_bundles(heads: Path) -> list[Path]:
    """The folders of all bundles under ``heads``, by name."""
    if not heads.is_dir():
        raise UserError(f"{heads}: no such folder of heads; train one with train-head, or give --heads")
    return sorted(path.parent for path in heads.glob("*/head.json") if not path.parent.name.startswith("."))
