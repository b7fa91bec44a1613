"""Limbs: a few layers on a tap of the trunk, trained once on a family of tasks together, then frozen and shared.

Heads stand on a limb as on a tap. A limb lies on disk as ``limb.json``, ``limb.safetensors``, the heads that its tasks
had in the training, from which their heads on it start, and a card, in a folder of its name.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from onetrunk.files import replaced_folder
from onetrunk.nn.bundle import head_limits
from onetrunk.nn.tensor_file import Limits, check_header, read_tensors
from onetrunk.nn.trunk import Starts, Trunk
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.head_json import LIMB_JSON, MAX_HEAD_JSON_BYTES, MAX_LABELS, MAX_WIDTH, Layers, Name, Tap
from onetrunk.protocol.names import LimbId, check_task_name
from onetrunk.protocol.reading import read_json, sha256_file
from onetrunk.toml_file import explain

WEIGHTS = "limb.safetensors"
STARTS = "heads.safetensors"
CARD = "README.md"

# See onetrunk.nn.bundle, where the same holds for a head's layers.
_TENSORS_A_LAYER, _NUMBERS_A_PAIR, _BYTES_A_NUMBER = 32, 48, 8

Task = Annotated[str, AfterValidator(check_task_name)]


class FamilyTask(BaseModel):
    """A task of the family that a limb was trained on.

    Attributes:
        metric: The metric.
        score: The score on the dev data of the one-layer head that was trained with the limb.
        train_rows: The number of train rows.
        train_rows_left_out: How many more there were, whose texts are dev or test texts of another task of the family.
        left_out_sha256: A hash over which rows these are; None where there are none.
        dev_rows: The number of dev rows.
        outputs: The number of its raw outputs.
        sha256: A hash over the task and its data.
        licence: What is known about the licence of the data.
        teacher_sha256: The hash of the weights of the head that taught it; None where labels alone did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Name
    score: FiniteFloat
    train_rows: int = Field(ge=1)
    train_rows_left_out: int = Field(default=0, ge=0)
    left_out_sha256: Name | None = None
    dev_rows: int = Field(ge=1)
    outputs: int = Field(default=1, ge=1, le=2 * MAX_LABELS + 1)
    sha256: Name
    licence: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    teacher_sha256: Name | None = None


class LimbSpec(BaseModel):
    """``limb.json``: where a limb stands, and what it was trained on.

    Attributes:
        schema_version: The version of this schema.
        name: The name, which has the form of a task's.
        tap: The number of trunk layers below the limb.
        layers: The number of the limb's own layers.
        trunk: The identity of the trunk.
        width: The width of the trunk's hidden states.
        max_length: The longest text that it was trained on, in tokens.
        tasks: Task -> what is known of it as one of the family.
        recipe: The training recipe.
        created: The date of training, in ISO 8601.
        onetrunk_version: The version of OneTrunk that trained it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: Task
    tap: Tap
    layers: Layers
    trunk: Name
    width: int = Field(ge=1, le=MAX_WIDTH)
    max_length: int = Field(ge=3)
    tasks: Annotated[dict[Task, FamilyTask], Field(min_length=1, max_length=1000)]
    recipe: dict[str, Any] = {}
    created: Name
    onetrunk_version: Name


@dataclass(frozen=True)
class Limb:
    """A limb as read from disk.

    Attributes:
        folder: Its folder.
        spec: The content of limb.json.
        identity: Its identity.
        weights: Parameter name -> tensor, in 32-bit floats.
    """

    folder: Path
    spec: LimbSpec
    identity: LimbId
    weights: Mapping[str, Tensor]

    @property
    def starts(self) -> LimbStarts:
        """What the heads of its family had learned in its training, where that was kept."""
        return LimbStarts(self.folder, self.spec)

    def branch(self, trunk: Trunk) -> Trunk:
        """Return the trunk with the limb's layers in place of its own from the limb's tap on.

        Layers above the limb are the trunk's: heads on the limb start from copies of them, unless their task is of the
        family.

        Args:
            trunk: The trunk that the limb was trained on.

        Raises:
            UserError: It was trained on another one, or its weights do not fit.
        """
        spec = self.spec
        if spec.trunk != trunk.identity:
            raise UserError(
                f"{self.folder}: trained on trunk {spec.trunk}, but this trunk is {trunk.identity}; give its own trunk "
                "by --trunk, or train it again on this trunk"
            )
        stop = self.identity.stop
        if spec.width != trunk.width or stop >= trunk.depth:
            found = counted(spec.layers, "layer", "layers")
            raise UserError(
                f"{self.folder}/{LIMB_JSON}: found {found} of width {spec.width} on tap {spec.tap}; this "
                f"trunk has {trunk.depth} layers of width {trunk.width}, one of which heads need: train the limb again"
            )
        own = new_layers(trunk, spec.tap, spec.layers)
        try:
            own.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.folder}: {WEIGHTS} does not fit {LIMB_JSON}: {first}") from error
        family = {task: one.sha256 for task, one in spec.tasks.items()}
        return grafted(trunk, own, self.identity, self.starts, family)


def check_layers(trunk: Trunk, tap: int, layers: int) -> None:
    """Check that a limb of so many layers fits on a tap.

    Raises:
        UserError: The trunk has no such tap, or not that many layers and one more above it.
    """
    trunk.check_tap(tap, above=2)
    most = trunk.depth - tap - 1
    if not 1 <= layers <= most:
        count = counted(most, "layer", "layers")
        raise UserError(
            f"a limb on tap {tap} of this trunk of {trunk.depth} layers has {count} at most, so that heads have one "
            f"above it, not {layers}"
        )


def new_layers(trunk: Trunk, tap: int, layers: int) -> nn.ModuleList:
    """Return copies of the trunk's layers above a tap, to be trained as a limb.

    Raises:
        UserError: See ``check_layers``.
    """
    check_layers(trunk, tap, layers)
    # In one pass, so that layers with the weights of one stay so.
    return copy.deepcopy(trunk.layers[tap : tap + layers])


def grafted(
    trunk: Trunk,
    layers: nn.ModuleList,
    identity: LimbId,
    starts: Starts | None = None,
    family: Mapping[str, str] | None = None,
) -> Trunk:
    """Return a trunk with other layers in place of its own, from a limb's tap on. All other layers are shared.

    Args:
        trunk: The trunk.
        layers: The limb's layers.
        identity: The limb's identity, which is the branch's, too: states on it are cached under this name.
        starts: See `Trunk.starts`.
        family: See `Trunk.family`.
    """
    encoder = copy.copy(trunk.encoder)
    encoder.layers = nn.ModuleList([*trunk.layers[: identity.start], *layers, *trunk.layers[identity.stop :]])
    return Trunk(
        encoder,
        identity=str(identity),
        folder=trunk.folder,
        tokenizer_file=trunk.tokenizer_file,
        source=trunk.source,
        notes=trunk.notes,
        root=trunk,
        limb=identity,
        starts=starts,
        family=family,
    )


def save_limb(
    folder: Path, spec: LimbSpec, layers: nn.ModuleList, heads: Mapping[str, nn.Module] | None = None
) -> LimbId:
    """Write a limb atomically, and return its identity. Weights are stored as fp16.

    Another limb that is in the folder is kept beside it, as ``<name>@<hash>``: heads stand on it until they are trained
    again.

    Args:
        folder: The limb's folder, which has its name.
        spec: What its limb.json says.
        layers: Its layers.
        heads: Task -> the head that it had in the training; see `Trunk.starts`.

    Raises:
        UserError: What is in the folder's place is no limb.
        OneTrunkError: The disk is full, or the folder cannot be written for another reason.
    """
    with replaced_folder(folder, LIMB_JSON) as staging:
        save_file(_stored(layers), staging / WEIGHTS)
        if heads:
            starts = {f"{task}/{name}": one for task, head in heads.items() for name, one in _stored(head).items()}
            save_file(starts, staging / STARTS)
        identity = _identity(spec, staging)
        _keep_other(folder, identity)
        (staging / LIMB_JSON).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (staging / CARD).write_text(card_text(spec, identity), encoding="utf-8")
    return identity


def _stored(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in module.state_dict().items()}


def _keep_other(folder: Path, identity: LimbId) -> None:
    """Move a limb of another identity out of a folder."""
    try:
        old = _identity(read_limb_spec(folder), folder)
    except (UserError, FileNotFoundError):
        return
    if old != identity and not (kept := _kept_folder(folder.parent, old)).exists():
        os.replace(folder, kept)


def _kept_folder(limbs: Path, identity: LimbId) -> Path:
    return limbs / f"{identity.name}@{identity.digest}"


def read_limb_spec(folder: Path) -> LimbSpec:
    """Read a folder's limb.json.

    Raises:
        UserError: The file is missing, broken or of another schema.
    """
    path = folder / LIMB_JSON
    try:
        spec = LimbSpec.model_validate(read_json(path, max_bytes=MAX_HEAD_JSON_BYTES, inside=folder))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {LIMB_JSON} in it, so it is no limb; train one with train-limb") from None
    except ValidationError as error:
        raise UserError(explain(path, error.errors()[0])) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON that can be used: {error}") from error
    if spec.name != folder.resolve().name.partition("@")[0]:
        raise UserError(f"{path}: its name is {spec.name!r}; a limb's folder has its name")
    return spec


def load_limb(folder: Path) -> Limb:
    """Read and check a limb.

    Raises:
        UserError: A file is missing, broken or of another schema, or a weight is not a finite number.
    """
    spec = read_limb_spec(folder)
    numbers = spec.layers * _NUMBERS_A_PAIR * (spec.width**2 + spec.width)
    limits = Limits(spec.layers * _TENSORS_A_LAYER, _BYTES_A_NUMBER * numbers)
    try:
        check_header(folder / WEIGHTS, limits, inside=folder)
        identity = _identity(spec, folder)
        weights = _read(folder / WEIGHTS, limits)
        # Weights under the identity of others would be a limb that nobody has.
        changed = _identity(spec, folder) != identity
    except FileNotFoundError:
        raise UserError(f"{folder}: no {WEIGHTS} in it: train the limb again") from None
    if changed:
        raise UserError(f"{folder}: it was written anew while it was read: run the same command again")
    return Limb(folder, spec, identity, weights)


class LimbStarts(Mapping[tuple[str, str], Mapping[str, Tensor]]):
    """What the heads of a limb's family had learned in its training; see ``Trunk.starts``.

    The file is read when it is first asked for, since only the training of heads needs it. Where it was left out, there
    are none.
    """

    def __init__(self, folder: Path, spec: LimbSpec) -> None:
        self._folder, self._spec = folder, spec
        self._found: dict[tuple[str, str], dict[str, Tensor]] | None = None

    def _read(self) -> dict[tuple[str, str], dict[str, Tensor]]:
        if self._found is None:
            found: dict[tuple[str, str], dict[str, Tensor]] = {}
            path, limits, tasks = self._folder / STARTS, _limits_of_heads(self._spec), self._spec.tasks
            if path.exists():
                check_header(path, limits, inside=self._folder)
                for name, tensor in _read(path, limits).items():
                    task, _, parameter = name.partition("/")
                    if task in tasks:
                        found.setdefault((task, tasks[task].sha256), {})[parameter] = tensor
            self._found = found
        return self._found

    def __getitem__(self, key: tuple[str, str]) -> Mapping[str, Tensor]:
        return self._read()[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _limits_of_heads(spec: LimbSpec) -> Limits:
    """Return how large the heads of the family can be: one layer each, what layers share, and an output layer."""
    heads = [head_limits(1, spec.width, one.outputs) for one in spec.tasks.values()]
    return Limits(sum(head.tensors for head in heads), sum(head.data_bytes for head in heads))


def _read(path: Path, limits: Limits) -> dict[str, Tensor]:
    tensors = {name: tensor.float() for name, tensor in read_tensors(path, limits, inside=path.parent).items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} contains NaN or infinity: train the limb again")
    return tensors


def find_limb(places: Sequence[Path], identity: LimbId) -> Limb:
    """Find a limb by its identity.

    Args:
        places: The folders of limbs in which it is looked for, one after the other.
        identity: The identity, as a head on it names it.

    Raises:
        UserError: There is none of this name, or another one, and this one was not kept.
    """
    others = []
    for limbs in places:
        for folder in (_kept_folder(limbs, identity), limbs / identity.name):
            if folder.is_dir():
                limb = load_limb(folder)
                if limb.identity == identity:
                    return limb
                others.append(limb)
    if not others:
        where = " and ".join(f"{limbs} has no folder {identity.name}" for limbs in places)
        raise UserError(f"it stands on limb {identity}, and {where}: give --limbs FOLDER")
    other = others[-1]
    raise UserError(
        f"it stands on limb {identity}, and {other.folder} is {other.identity} now: train the head again on that "
        f"one, or bring the old limb back as {_kept_folder(other.folder.parent, identity)}"
    )


def card_text(spec: LimbSpec, identity: LimbId) -> str:
    """Return the card in Markdown: what a person should know before putting a head on the limb."""
    lines = [
        f"# Limb `{spec.name}`",
        "",
        f"{counted(spec.layers, 'layer', 'layers')} on tap {spec.tap} of trunk `{spec.trunk}`, trained on "
        f"{counted(len(spec.tasks), 'task', 'tasks together')} and frozen: "
        f"`{identity}`. Heads stand on it as on tap {identity.stop}, also those of other tasks.",
        "",
        "| task | metric | with a one-layer head, trained jointly | train rows | dev rows | licence of the data |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {task.metric} | {100 * task.score:.1f} | {task.train_rows:,} | {task.dev_rows:,} | "
            f"{task.licence or 'not known'} |"
            for name, task in sorted(spec.tasks.items())
        ),
        "",
        *_teachers(spec),
        *_left_out(spec),
        "The epoch was chosen by the average of these scores, so that they are a little optimistic.",
        "",
        f"Trained on {spec.created} with OneTrunk {spec.onetrunk_version}.",
    ]
    return "\n".join(lines) + "\n"


def _teachers(spec: LimbSpec) -> list[str]:
    taught = [name for name, task in sorted(spec.tasks.items()) if task.teacher_sha256 is not None]
    return [f"Finished heads taught {', '.join(taught)}, beside the labels.", ""] if taught else []


def _left_out(spec: LimbSpec) -> list[str]:
    found = {name: task.train_rows_left_out for name, task in sorted(spec.tasks.items()) if task.train_rows_left_out}
    told = ", ".join(f"{count:,} of {name}" for name, count in found.items())
    return [f"Left out, as dev or test texts of another task of the family: train rows {told}.", ""] if found else []


def _identity(spec: LimbSpec, folder: Path) -> LimbId:
    """Return the identity of a limb of these files: where it stands and what it computes.

    What heads start from does not belong to it, so that a limb can be handed on without; a run has it in its key.
    """
    facts = "\0".join([spec.trunk, str(spec.tap), str(spec.layers), sha256_file(folder / WEIGHTS, inside=folder)])
    return LimbId(spec.name, spec.tap, spec.tap + spec.layers, hashlib.sha256(facts.encode()).hexdigest()[:12])
