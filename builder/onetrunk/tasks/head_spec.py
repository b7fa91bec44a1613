"""``head.json`` of a bundle, checked against the kinds of task. It is read without torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError, model_validator

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON, MAX_HEAD_JSON_BYTES, HeadJson
from onetrunk.protocol.reading import read_json
from onetrunk.tasks.kinds import get_kind

OWN_LABELS, TEACHERS_LABELS = "the data's own", "the teacher's answers"
"""What the dev labels of a head that has a teacher outside are, in ``HeadSpec.data``."""
DEFAULT_LIMBS = Path("limbs")
"""The folder of the limbs on which heads stand, where nothing says another one."""


def limbs_of(heads: Path, named: Path | None = None) -> tuple[Path, ...]:
    """Return the folders in which the limbs of heads are looked for.

    They are ``limbs`` beside the heads' folder and ``limbs`` in the working folder, unless a folder is named.

    Args:
        heads: The folder of bundles.
        named: The folder that a user named, if any.
    """
    if named is not None:
        return (named,)
    beside = heads.absolute().parent / DEFAULT_LIMBS
    return (DEFAULT_LIMBS,) if beside == DEFAULT_LIMBS.absolute() else (beside, DEFAULT_LIMBS)


class HeadSpec(HeadJson):
    """``head.json`` whose labels, range, options, fitted values and reference fit its kind, as in every bundle."""

    @model_validator(mode="after")
    def _answer_fits_kind(self) -> HeadSpec:
        kind = get_kind(self.kind)
        kind.check(self)
        if kind.has_weights != (self.layers > 0):
            allowed = "1 or more" if kind.has_weights else "0"
            raise ValueError(f"found {self.layers} layers; a head of kind {kind.name} has {allowed}")
        if not kind.has_weights and self.query != "mean":
            raise ValueError(f"found query {self.query!r}; a head of kind {kind.name} has 'mean'")
        shares = self.reference.labels if self.reference is not None else None
        if shares is not None and len(shares) != len(self.labels or ()):
            raise ValueError(f"reference.labels has {len(shares)} shares for {len(self.labels or ())} labels")
        return self


def read_spec(folder: Path, *, any_folder: bool = False) -> HeadSpec:
    """Read a folder's head.json.

    Args:
        folder: The folder, named after its task.
        any_folder: Whether it may have another name, as the folder of a candidate has.

    Raises:
        UserError: The file is missing, broken or of another schema.
    """
    path = folder / HEAD_JSON
    try:
        spec = HeadSpec.model_validate(read_json(path, max_bytes=MAX_HEAD_JSON_BYTES, inside=folder))
    except FileNotFoundError:
        if not os.path.lexists(folder):
            raise UserError(f"{folder}: no such folder; give the folder of a head") from None
        raise UserError(f"{folder}: no head.json in it, so it is not a bundle") from None
    except ValidationError as error:
        first = error.errors()[0]
        rule = first["msg"].removeprefix("Value error, ")
        # Without a location the error concerns all fields, and what was found would be the whole file.
        if not first["loc"]:
            raise UserError(f"{path}: {rule}") from error
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {rule} (found {first['input']!r:.80})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON that can be used: {error}") from error
    if spec.task != folder.name and not any_folder:
        raise UserError(f"{path}: its task is {spec.task!r}; a bundle's folder is named after its task")
    return spec


def find_bundles(heads: Path) -> list[Path]:
    """Return the folders of all bundles under ``heads``, by name.

    Raises:
        UserError: There is no such folder.
    """
    if not heads.is_dir():
        raise UserError(
            f"{heads}: no such folder of heads; train one with train-head, or give --heads FOLDER: a checkout of "
            "OneTrunk has trained heads in its folder heads"
        )
    return sorted(path.parent for path in heads.glob("*/head.json") if not path.parent.name.startswith("."))
