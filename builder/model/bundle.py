"""A trained head on disk: ``head.json``, ``head.safetensors`` and a card, in a folder named after its task."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from builder.errors import UserError
from builder.model.card import card_text
from builder.model.head import Head, empty_head
from builder.model.kinds import get_kind
from builder.model.query import Query
from builder.model.trunk import Trunk
from builder.whole_file import writing

TASK_NAME = r"^[a-z][a-z0-9_]{0,47}$"


class HeadSpec(BaseModel):
    """``head.json``: what a head answers, where it stands, and how it came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: str = Field(pattern=TASK_NAME)
    kind: str
    form: Literal["single", "pair"]
    labels: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None
    tap: int = Field(ge=0)
    layers: int = Field(ge=1)
    query: Query = "cls"
    trunk: str
    width: int = Field(ge=1)
    max_length: int = Field(ge=3)
    metric: str
    scores: dict[str, float]
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    story: dict[str, Any] = {}
    licence: str | None = None
    created: str
    onetrunk_version: str

    @model_validator(mode="after")
    def _answer_fits_kind(self) -> HeadSpec:
        kind = get_kind(self.kind)
        if kind.uses_labels and (not self.labels or len(set(self.labels)) < max(len(self.labels), 2)):
            raise ValueError(f"a {self.kind} head needs at least two labels, all different")
        if kind.uses_range and (self.range is None or not self.range[0] < self.range[1]):
            raise ValueError(f"a {self.kind} head needs a range, lowest and highest number")
        if self.labels and any(not label or "\n" in label or "\r" in label for label in self.labels):
            raise ValueError("a label is empty or has a line break in it")
        return self


@dataclass(frozen=True)
class Bundle:
    """A head as read from disk, before it is put on a trunk.

    Attributes:
        folder: where it was read from.
        spec: the content of head.json.
        weights: parameter name -> tensor, in 32-bit floats.
    """

    folder: Path
    spec: HeadSpec
    weights: dict[str, Tensor]

    def check_trunk(self, trunk: Trunk) -> None:
        """Raises UserError where the head was trained on another trunk."""
        if self.spec.trunk != trunk.identity:
            raise UserError(
                f"{self.folder}: trained on trunk {self.spec.trunk}, but this trunk is {trunk.identity}; "
                f"give its own trunk by --trunk, or train it again on this one"
            )
        trunk.check_tap(self.spec.tap)

    def head(self, trunk: Trunk) -> Head:
        """The head in evaluation mode on its trunk.

        Raises:
            UserError: it was trained on another trunk, or its weights do not fit head.json.
        """
        self.check_trunk(trunk)
        spec = self.spec
        outputs = get_kind(spec.kind).outputs(spec)
        head = empty_head(trunk, outputs=outputs, layers=spec.layers, query=spec.query)
        try:
            head.load_state_dict(self.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.folder}: head.safetensors does not fit head.json: {first}") from error
        return head


def save_bundle(folder: Path, spec: HeadSpec, head: Head) -> None:
    """Writes a bundle aside and moves it in whole: a reader never sees half of one.

    A crash between the two moves of a replacement leaves the old bundle beside its place, as ``.<task>.*.old``.

    Weights are stored as fp16: half the size, and for the weights of a head no difference in its answers that a
    metric sees.

    Raises:
        OneTrunkError: the disk is full, or the folder cannot be written for another reason.
    """
    with writing(folder):
        _write(folder, spec, head)


def _write(folder: Path, spec: HeadSpec, head: Head) -> None:
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in head.state_dict().items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(weights, staging / "head.safetensors")
        (staging / "head.json").write_text(spec.model_dump_json(indent=2) + "\n")
        (staging / "README.md").write_text(card_text(spec))
        # Made for one user alone, as temporary files are; a bundle is to be read by whoever may read the folder.
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
        if folder.exists():
            retired = staging.with_name(staging.name + ".old")
            os.replace(folder, retired)
            os.replace(staging, folder)
            shutil.rmtree(retired)
        else:
            os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_bundle(folder: Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
        UserError: a file is missing, broken or of another schema, or a weight is not a finite number.
    """
    spec = read_spec(folder)
    try:
        stored = load_file(folder / "head.safetensors")
    except FileNotFoundError:
        raise UserError(f"{folder}: no head.safetensors in it: train the head again") from None
    except SafetensorError as error:
        raise UserError(f"{folder}/head.safetensors is broken: {error}") from error
    weights = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}/head.safetensors: {name} holds NaN or infinity: train the head again")
    return Bundle(folder, spec, weights)


def read_spec(folder: Path) -> HeadSpec:
    """Reads head.json alone. Raises UserError as load_bundle does."""
    path = folder / "head.json"
    try:
        spec = HeadSpec.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{folder}: no head.json in it, so it is not a bundle") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{first['msg']} (found {first['input']!r:.80})"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if spec.task != folder.name:
        raise UserError(f"{path}: its task is {spec.task!r}; a bundle's folder has the name of its task")
    return spec


def find_bundles(heads: Path) -> list[Path]:
    """The folders of all bundles under ``heads``, by name."""
    if not heads.is_dir():
        raise UserError(f"{heads}: no such folder of heads; train one with train-head, or give --heads")
    return sorted(path.parent for path in heads.glob("*/head.json") if not path.parent.name.startswith("."))
