"""``head.json``: what a head answers, where it stands, and how it came about. Read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.task_name import check_task_name
from onetrunk.tasks.kinds import get_kind

HEAD_JSON = "head.json"

# What a head's last layer is computed for; onetrunk.nn.query says how.
Query = Literal["cls", "mean", "learned"]


class HeadSpec(BaseModel):
    """``head.json``: what a head answers, where it stands, and how it came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: Annotated[str, AfterValidator(check_task_name)]
    kind: str
    form: Literal["single", "pair"]
    labels: tuple[str, ...] | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    options: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    tap: int = Field(ge=0)
    layers: int = Field(ge=1)
    query: Query = "cls"
    trunk: str
    width: int = Field(ge=1)
    max_length: int = Field(ge=3)
    metric: str
    scores: dict[str, FiniteFloat]
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    story: dict[str, Any] = {}
    licence: str | None = None
    created: str
    onetrunk_version: str

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
