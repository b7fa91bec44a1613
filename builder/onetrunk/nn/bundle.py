"""Trained heads on disk, as ``head.json``, ``head.safetensors`` and a card, in a folder of the task's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrunk.files import atomic_write_text, replaced_folder
from onetrunk.nn.embedding import MeanHead
from onetrunk.nn.head import Head, empty_head
from onetrunk.nn.tensor_file import Limits, read_tensors
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.head_json import HEAD_JSON, HeldOutScores
from onetrunk.tasks import Task
from onetrunk.tasks.head_spec import TEACHERS_LABELS, HeadSpec, read_spec
from onetrunk.tasks.kinds import get_kind

# What a head answers; a task file that says otherwise needs another head.
_ANSWER = ("kind", "form", "labels", "range")

WEIGHTS = "head.safetensors"
CARD = "README.md"

# A layer of BERT's form has 16 tensors, and 12 numbers for each pair of features with an FFN of the usual four widths.
# Twice as many tensors and an FFN of twenty widths leave room for other families.
_TENSORS_A_LAYER, _NUMBERS_A_PAIR = 32, 48
_OTHER_TENSORS = 16
# Embeddings of relative positions, and a norm.
_SHARED_ROWS = 4096
_BYTES_A_NUMBER = 8


@dataclass(frozen=True)
class Bundle:
    """A head as read from disk.

    Attributes:
        folder: The folder it was read from.
        spec: The content of head.json.
        weights: Parameter name -> tensor, in 32-bit floats; empty for a kind without weights.
    """

    folder: Path
    spec: HeadSpec
    weights: dict[str, Tensor]

    def check_trunk(self, trunk: Trunk) -> None:
        """Check that the head was trained on this trunk, and has no more layers than can be copied from it.

        Raises:
            UserError: It was trained on another one, or says that it has another width or more layers.
        """
        _check_trunk(self.folder, self.spec, trunk)

    def check_task(self, task: Task) -> None:
        """Check that the head was trained for a task as its file is now.

        Raises:
            UserError: It was trained for another kind, form, other labels, another range or other options.
        """
        self._compare(task, (*_ANSWER, "options"), "give the task file that it was trained by, or train it again")

    def check_teaches(self, task: Task) -> None:
        """Check that the head's raw outputs mean what those of a task's heads do, whatever options they have.

        Raises:
            UserError: It is of another kind, form, has other labels or another range, or other outputs.
        """
        self._compare(task, _ANSWER, "a teacher gives the same answers, so name another one")
        count = get_kind(task.kind).output.num_outputs
        if count(self.spec) != count(task):
            raise UserError(
                f"{self.folder}: it has {count(self.spec)} outputs, and a head of task {task.name} has {count(task)}: "
                "name another teacher"
            )

    def _compare(self, task: Task, names: Sequence[str], hint: str) -> None:
        for name in names:
            own, given = getattr(self.spec, name), getattr(task, name)
            if own != given:
                raise UserError(
                    f"{self.folder}: trained for {name} {_shown(own)}, but the task file says {_shown(given)}: {hint}"
                )

    def head(self, trunk: Trunk) -> Head | MeanHead:
        """Build the head in evaluation mode.

        Raises:
            UserError: It was trained on another trunk, or its weights do not fit head.json.
        """
        self.check_trunk(trunk)
        spec = self.spec
        trunk = trunk.branch(spec.limb_id)
        if not get_kind(spec.kind).has_weights:
            return MeanHead(trunk.shared if spec.tap == trunk.depth else None).eval()
        outputs = get_kind(spec.kind).output.build_layer(trunk.width, spec)
        head = empty_head(trunk, outputs=outputs, tap=spec.tap, layers=spec.layers, query=spec.query)
        try:
            head.load_state_dict(self.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.folder}: head.safetensors does not fit head.json: {first}") from error
        return head


def save_bundle(folder: Path, spec: HeadSpec, head: Head) -> None:
    """Write a bundle atomically: a reader never sees half of one.

    A crash between the two renames of a replacement leaves the old bundle beside its place, as ``.<task>.*.old``.

    Weights are stored as fp16, which halves the size and changes no metric of a head.

    Raises:
        UserError: What is in the folder's place is no bundle.
        OneTrunkError: The disk is full, or the folder cannot be written for another reason.
    """
    with replaced_folder(folder, HEAD_JSON) as staging:
        weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in head.state_dict().items()}
        save_file(weights, staging / WEIGHTS)
        (staging / HEAD_JSON).write_text(_spec_text(spec), encoding="utf-8")
        (staging / CARD).write_text(card_text(spec), encoding="utf-8")


def replace_spec(folder: Path, spec: HeadSpec) -> None:
    """Replace head.json and the card of a bundle, each atomically. The weights are not touched.

    Raises:
        OneTrunkError: The disk is full, or the folder cannot be written for another reason.
    """
    text, card = _spec_text(spec), card_text(spec)
    atomic_write_text(folder / HEAD_JSON, text)
    atomic_write_text(folder / CARD, card)


def _spec_text(spec: HeadSpec) -> str:
    return spec.model_dump_json(indent=2) + "\n"


def load_bundle(folder: Path, *, any_folder: bool = False, trunk: Trunk | None = None) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: The folder, named after its task.
        any_folder: Whether it may have another name, as the folder of a candidate has.
        trunk: The trunk that the head must fit, which is checked before the weights are read; None for any.

    Raises:
        UserError: A file is missing, broken or of another schema, a weight is not a finite number, or the head does not
            fit the trunk.
    """
    spec = read_spec(folder, any_folder=any_folder)
    if trunk is not None:
        _check_trunk(folder, spec, trunk)
    if not get_kind(spec.kind).has_weights:
        if (folder / WEIGHTS).exists():
            raise UserError(
                f"{folder}: found {WEIGHTS}, and a head of kind {spec.kind} has no weights: delete the file"
            )
        return Bundle(folder, spec, {})
    try:
        stored = read_tensors(folder / WEIGHTS, _limits(spec), inside=folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {WEIGHTS} in it: train the head again") from None
    weights = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}/head.safetensors: {name} contains NaN or infinity: train the head again")
    return Bundle(folder, spec, weights)


def _shown(value: object) -> str:
    return f"{list(value) if isinstance(value, tuple) else value!r:.60}" if value is not None else "none"


def _check_trunk(folder: Path, spec: HeadSpec, trunk: Trunk) -> None:
    if spec.trunk != trunk.root.identity:
        raise UserError(
            f"{folder}: trained on trunk {spec.trunk}, but this trunk is {trunk.root.identity}; "
            f"give its own trunk by --trunk, or train it again on this trunk"
        )
    try:
        trunk = trunk.branch(spec.limb_id)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    trunk.check_tap(spec.tap)
    if spec.width != trunk.width or spec.tap + spec.layers > trunk.depth:
        found = counted(spec.layers, "layer", "layers")
        raise UserError(
            f"{folder}/head.json: found {found} of width {spec.width} on tap {spec.tap}; on this trunk, "
            f"tap and layers together are {trunk.depth} at most, of width {trunk.width}: train the head again"
        )


def _limits(spec: HeadSpec) -> Limits:
    return head_limits(spec.layers, spec.width, get_kind(spec.kind).output.num_outputs(spec))


def head_limits(layers: int, width: int, outputs: int) -> Limits:
    """Return how large the weights of a head can be. Whether they fit exactly is known once it is built."""
    numbers = layers * _NUMBERS_A_PAIR * (width**2 + width) + outputs * (width + outputs + 2)
    numbers += _SHARED_ROWS * width
    return Limits(layers * _TENSORS_A_LAYER + _OTHER_TENSORS, _BYTES_A_NUMBER * numbers)


# Readers expect [CLS], so it is not mentioned.
_QUERIES = {"cls": "", "mean": "the mean of the states", "learned": "a learned, weighted mean of the states"}


def card_text(spec: HeadSpec) -> str:
    """Return the card in Markdown: what a person should know before serving the head."""
    reads = "one text" if spec.form == "single" else "a pair of texts"
    query = _QUERIES[spec.query]
    where = f"limb `{spec.limb}` of trunk `{spec.trunk}`" if spec.limb else f"trunk `{spec.trunk}`"
    lines = [
        f"# Head `{spec.task}`",
        "",
        f"A {spec.kind} head for {reads}: {get_kind(spec.kind).output.describe(spec)}.",
        f"{counted(spec.layers, 'layer', 'layers')} on tap {spec.tap} of {where}, up to {spec.max_length} tokens.",
        *([f"The query of its last layer is {query} below it, not [CLS]."] if query else []),
        "",
        "## Scores on the dev data",
        "",
        "| metric | score |",
        "|---|---|",
        *(f"| {name} | {100 * value:.1f} |" for name, value in spec.scores.items()),
        "",
        f"The epoch was chosen on the same dev data, by {spec.metric}, so these scores are a little optimistic.",
        *(
            ["The labels of the dev data are the teacher's answers: scores say how far the head agrees with it."]
            if spec.data.get("dev_labels") == TEACHERS_LABELS
            else []
        ),
        "",
        *(_test(spec.test) if spec.test is not None else []),
        *(["## Fitted to the dev data", "", *_fitted(spec), ""] if spec.fitted else []),
        *(["## How it came about", "", *story, ""] if (story := _story(spec.story)) else []),
        "## Data",
        "",
        *_items(spec.data),
        f"- licence: {spec.licence or 'not stated by the task file'}",
        "",
        *(["## Options", "", *_items(spec.options), ""] if spec.options else []),
        "## Recipe",
        "",
        *_items(spec.recipe),
        "",
        f"Written by OneTrunk {spec.onetrunk_version} on {spec.created}. Weights are stored as fp16.",
    ]
    return "\n".join(lines) + "\n"


def _test(test: HeldOutScores) -> list[str]:
    return [
        "## Scores on the test data",
        "",
        "| metric | score |",
        "|---|---|",
        *(f"| {name} | {100 * value:.1f} |" for name, value in test.scores.items()),
        "",
        f"{test.rows:,} rows of {test.data} (sha256 {test.sha256}). Nothing was chosen by them or fitted to them.",
        "",
    ]


def _story(story: dict[str, Any]) -> list[str]:
    """Return what is told of a head's making; nothing, where other software wrote what nothing here reads."""
    try:
        return _told(story) if story else []
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _told(story: dict[str, Any]) -> list[str]:
    """Describe what was trained before this head. Scores are of the metric that selected the epoch."""
    if adopted := story.get("adopted"):
        return _items(adopted)
    lines = [f"Scores on the dev data by {story['metric']}.", "", "| what | score |", "|---|---|"]
    if full := story.get("full_fine_tuning"):
        lines.append(f"| full fine-tuning of the whole encoder | {_over_seeds(full)} |")
    if teacher := story.get("teacher"):
        where = f"{counted(teacher['layers'], 'layer', 'layers')} on tap {teacher['tap']}"
        lines.append(f"| its teacher: {where} | {100 * teacher['score']:.1f} |")
    lines.append(f"| this head | {_over_seeds(story['student'])} |")
    if how := story.get("distillation"):
        lines += [
            "",
            "Distilled with: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in how.items()),
        ]
    if tried := story.get("tried"):
        lines += ["", "Tried in the search:", "", *(f"- {one}" for one in tried)]
    return lines


def _fitted(spec: HeadSpec) -> list[str]:
    """List what was fitted on the dev data; values of labels with the labels' names."""
    items: dict[str, Any] = {}
    for name, value in spec.fitted.items():
        if isinstance(value, list):
            value = dict(zip(spec.labels or (), value, strict=False))
        items[name] = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
    measured = "What is measured on the same data after that, is a little optimistic"
    if "calibration_error" in spec.fitted:
        measured += "; not so the calibration error after: each fifth of the data has the temperature of the others"
    return [*_items(items), "", f"{measured}."]


def _over_seeds(result: dict[str, Any]) -> str:
    mean = f"{100 * result['score']:.1f}"
    if "deviation" not in result:
        return f"{mean} (one seed)"
    return f"{mean} (mean of {result['seeds']} seeds, standard deviation {100 * result['deviation']:.1f})"


def _items(mapping: dict[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in mapping.items()] or ["- not recorded"]
