"""Fine-tuned classifiers: the folder or hub id of a model of `transformers`, and what its configuration says of it.

Nothing is loaded here: weights are hashed, they must be safetensors, and a folder that brings code of its own, or has
other files loaded than those that are hashed, is refused.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrunk.nn.checkpoint import CONFIG, INDEX, WEIGHTS, open_checkpoint, read_index
from onetrunk.nn.trunk_source import HUB_ID, download_snapshot
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import MAX_LAYERS
from onetrunk.protocol.names import check_task_name
from onetrunk.protocol.reading import read_json, sha256_file
from onetrunk.tasks.kinds.span_tags import OUTSIDE

# What a tokenizer of any family may be made of.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "bpe.codes",
)
_MAX_JSON_BYTES = 2**26
_SEQUENCE, _TOKEN = "ForSequenceClassification", "ForTokenClassification"
_KIND_OF_PROBLEM = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
# Keys that may name code of a hub.
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_ADAPTER = "adapter_config.json"
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
# What is wrong with names is told to users of train-head, too, which has no --labels.
_NAME_THEM = "name the outputs in id2label of config.json, or for adopt-models by --labels in their order"
_NO_KIND = "leave --kind out, or give another model"
_UNNAMED = re.compile(r"LABEL_\d+")
_TAG = re.compile(r"([BILUES])[-_](.+)")


@dataclass(frozen=True, kw_only=True)
class Adoptable:
    """What can be adopted: something that has said, or will say, how texts are to be answered.

    Attributes:
        name: The name of its task, and of its bundle.
        folder: Where it lies.
        source: What was asked for: the path, or the hub's ``owner/name@commit``.
        sha256: A hash over all that its answers depend on.
        model_type: Its family, as `transformers` names it.
        kind: The kind of its task.
        outputs: The names of its outputs, in their order.
        labels: The labels of its task: the outputs, or the types of spans that they are tags of; None for regression.
        thresholds: The probability from which each label holds, for a multilabel model whose configuration has them.
        size_bytes: The size of its weights; 0 if it has none.
        notes: What a user should know about how it was read.
    """

    name: str
    folder: Path
    source: str
    sha256: str
    model_type: str
    kind: str
    outputs: tuple[str, ...]
    labels: tuple[str, ...] | None
    thresholds: tuple[float, ...] | None = None
    size_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def by_token(self) -> bool:
        """Whether it answers for every token."""
        return self.kind == "tagging"


class Classifier(Adoptable):
    """A classifier, before it is loaded: its folder, and what its configuration says."""


def open_classifier(
    source: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    task_kind: str | None = None,
    labels: Sequence[str] | None = None,
) -> Classifier:
    """Find a classifier's files, and read what its configuration says; the weights are hashed, and not loaded.

    Args:
        source: A folder, or a hub id as ``owner/name`` or ``owner/name@revision``.
        name: The name of its task; None makes one of the folder's.
        kind: The kind as which its outputs are read, whatever ``problem_type`` in the configuration says.
        task_kind: The kind of the task that it is a teacher of, which the configuration must not contradict.
        labels: The names of its outputs, in place of those in the configuration.

    Raises:
        UserError: There is no such model, it is none that is read, or its configuration does not tell what is needed.
    """
    folder, asked = _find(source)
    if (folder / _ADAPTER).exists():
        raise UserError(
            f"{folder}: an adapter of PEFT, and not a whole model: save what model.merge_and_unload() returns, and its "
            "tokenizer, into a folder"
        )
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: no config.json in it; give a folder that save_pretrained has written, or a hub id")
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    _refuse_code(folder, config)
    _check_layers(folder, config)
    notes: list[str] = []
    if task_kind is not None:
        _check_task_kind(folder, config, task_kind)
    found = _kind_of(folder, config, kind if task_kind is None else task_kind, notes)
    outputs = _outputs_of(folder, config, labels, notes)
    if found == "regression" and len(outputs) != 1:
        raise UserError(
            f"{folder}: {len(outputs)} outputs, and kind regression: models with one number are read; those of several "
            "outputs are of kind classification or multilabel"
        )
    if found == "classification" and len(outputs) < 2:
        raise UserError(
            f"{folder}: one output, and kind classification: its kind is regression or multilabel; adopt-models takes "
            "it by --kind"
        )
    digest = hashlib.sha256()
    for file in (folder / CONFIG, *(folder / one for one in _TOKENIZER_FILES), *checkpoint.weights):
        if file.exists():
            digest.update(f"{file.name}\0{sha256_file(file)}".encode())
    return Classifier(
        name=check_name(name) if name is not None else name_of(source),
        folder=folder,
        source=asked,
        sha256=digest.hexdigest(),
        model_type=str(config.get("model_type")),
        kind=found,
        outputs=outputs,
        labels=_labels_of(folder, found, outputs),
        thresholds=_thresholds_of(folder, config, found, len(outputs)),
        size_bytes=sum(file.stat().st_size for file in checkpoint.weights),
        notes=tuple(f"{folder}: {note}" for note in notes),
    )


def name_of(source: str) -> str:
    """Return the name of a task for a model: its folder's, or its file's, as far as a task may be named so.

    Raises:
        UserError: Nothing is left of it.
    """
    last = source.split("@")[0] if not Path(source).exists() else str(Path(source).resolve())
    last = Path(last).name.partition(".")[0] if Path(source).is_file() else Path(last).name
    plain = unicodedata.normalize("NFKD", last.lower()).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return check_name(f"m_{name}" if name[:1].isdigit() else name)


def check_name(name: str) -> str:
    """Return the name of a task.

    Raises:
        UserError: A task may not be named so.
    """
    try:
        return check_task_name(name)
    except ValueError as error:
        raise UserError(f"{name!r:.60}: {error}: name the model as NAME=MODEL") from None


def _find(source: str) -> tuple[Path, str]:
    if Path(source).is_dir():
        return Path(source), source
    if Path(source).is_file():
        raise UserError(
            f"{source}: a file, and no model; give a folder of a model, or a hub id; a file of soft labels is given to "
            f"adopt-models, or to train-head TASK.toml --teacher {source:.60}"
        )
    found = HUB_ID.fullmatch(source)
    if found is None:
        raise UserError(f"{source}: no such folder; give a folder of a model, or a hub id as owner/name")
    repository, revision = found["repository"], found["revision"]
    folder = download_snapshot(repository, revision, [CONFIG, *_TOKENIZER_FILES, WEIGHTS, INDEX])
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        folder = download_snapshot(repository, folder.name, sorted(set(read_index(folder).values())))
    return folder, f"{repository}@{folder.name}"


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    try:
        tokenizer = read_json(folder / "tokenizer_config.json", max_bytes=_MAX_JSON_BYTES)
    except FileNotFoundError:
        tokenizer = {}
    except ValueError as error:
        raise UserError(f"{folder}/tokenizer_config.json is not JSON: {error}") from error
    for file, content in ((CONFIG, config), ("tokenizer_config.json", tokenizer)):
        if isinstance(content, dict) and content.get("auto_map"):
            raise UserError(
                f"{folder / file}: auto_map names code that comes with the model, which is not run; adopt a model of a "
                "class that transformers has itself"
            )
    longest = tokenizer.get("model_max_length", 1) if isinstance(tokenizer, dict) else None
    if not isinstance(longest, (int, float)) or not longest >= 1:
        raise UserError(
            f"{folder}/tokenizer_config.json: model_max_length is {longest!r:.40}; it is the longest text in tokens"
        )
    for key in _IMPLEMENTATIONS:
        if key in config and "/" in str(config[key]):
            raise UserError(
                f"{folder / CONFIG}: {key} names {config[key]!r:.60}, code of a hub, which is not run: remove the key"
            )


def _check_layers(folder: Path, config: dict[str, Any]) -> None:
    for key in _LAYER_KEYS:
        layers = config.get(key, 1)
        if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
            raise UserError(f"{folder / CONFIG}: {key} is {layers!r:.40}; allowed are 1 to {MAX_LAYERS}")


def _kind_of(folder: Path, config: dict[str, Any], given: str | None, notes: list[str]) -> str:
    named = _class_of(config)
    if named.endswith(_TOKEN):
        if given not in (None, "tagging"):
            raise UserError(
                f"{folder / CONFIG}: architectures is {named:.60}, which cannot be read as {given}: {_NO_KIND}"
            )
        return "tagging"
    if named and not named.endswith(_SEQUENCE):
        raise UserError(
            f"{folder / CONFIG}: architectures is {named:.60}, which is no classifier; those that end in {_SEQUENCE} "
            f"or {_TOKEN} are adopted"
        )
    problem = config.get("problem_type")
    if named and given == "tagging":
        raise UserError(f"{folder / CONFIG}: architectures is {named:.60}, which cannot be read as tagging: {_NO_KIND}")
    if given is not None:
        if problem in _KIND_OF_PROBLEM and _KIND_OF_PROBLEM[problem] != given:
            notes.append(f"problem_type is {problem}, and --kind has it read as {given}")
        return given
    if not named:
        raise UserError(f"{folder / CONFIG}: architectures does not say what the model is for: give --kind")
    if problem is None:
        # As the losses and pipelines of transformers have it.
        kind = "regression" if _count_outputs(config) == 1 else "classification"
        notes.append(f"no problem_type, so it is read as {kind}; --kind gives another")
        return kind
    if problem not in _KIND_OF_PROBLEM:
        raise UserError(
            f"{folder / CONFIG}: problem_type is {problem!r:.60}; allowed are {', '.join(_KIND_OF_PROBLEM)}"
        )
    return _KIND_OF_PROBLEM[problem]


def _class_of(config: dict[str, Any]) -> str:
    classes = config.get("architectures")
    return classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""


def _check_task_kind(folder: Path, config: dict[str, Any], kind: str) -> None:
    """Refuse a teacher whose configuration says that it is of another kind than its task.

    Raises:
        UserError: It says so.
    """
    named, problem = _class_of(config), config.get("problem_type")
    why = f"architectures is {named:.60}"
    allowed: tuple[str, ...] = (kind,)
    if named.endswith(_TOKEN):
        allowed = ("tagging",)
    elif problem in _KIND_OF_PROBLEM:
        why, allowed = f"problem_type is {problem}", (_KIND_OF_PROBLEM[problem],)
    elif named.endswith(_SEQUENCE):
        allowed = tuple(_KIND_OF_PROBLEM.values())
    if kind not in allowed:
        raise UserError(
            f"{folder / CONFIG}: {why}, so the model is of kind {' or '.join(allowed)}, and not {kind} as its task: "
            "give a model of the task's kind"
        )


def _count_outputs(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return len(names)
    count = config.get("num_labels", config.get("_num_labels", 2))
    return count if isinstance(count, int) and 0 < count <= 100_000 else 2


def _outputs_of(folder: Path, config: dict[str, Any], given: Sequence[str] | None, notes: list[str]) -> tuple[str, ...]:
    count = _count_outputs(config)
    if given is not None:
        if len(given) != count:
            raise UserError(f"{folder}: the model has {count} outputs, and --labels names {len(given)}")
        return tuple(given)
    names = config.get("id2label") or {place: f"LABEL_{place}" for place in range(count)}
    try:
        by_place = {int(place): str(name) for place, name in names.items()}
    except (AttributeError, ValueError):
        raise UserError(f"{folder / CONFIG}: id2label is not a table of numbers and names: {_NAME_THEM}") from None
    if sorted(by_place) != list(range(len(by_place))) or len(set(by_place.values())) < len(by_place):
        raise UserError(f"{folder / CONFIG}: id2label does not name outputs 0, 1, ... differently: {_NAME_THEM}")
    outputs = tuple(by_place[place] for place in range(len(by_place)))
    if len(outputs) > 1 and all(_UNNAMED.fullmatch(name) for name in outputs):
        notes.append(f"its labels have no names but {outputs[0]} to {outputs[-1]}: {_NAME_THEM}")
    return outputs


def split_tag(output: str) -> tuple[str, str]:
    """Return the letter and the type of a tag: ``B`` and ``PER`` of ``B-PER``, ``I`` and ``PER`` of ``PER``."""
    if output == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(output)
    return (found[1], found[2]) if found else ("I", output)


def _labels_of(folder: Path, kind: str, outputs: tuple[str, ...]) -> tuple[str, ...] | None:
    if kind == "regression":
        return None
    if kind != "tagging":
        return outputs
    if OUTSIDE not in outputs:
        raise UserError(f"{folder / CONFIG}: none of its tags is {OUTSIDE}: {_NAME_THEM}")
    return tuple(dict.fromkeys("_".join(split_tag(one)[1].split()) for one in outputs if one != OUTSIDE))


def _thresholds_of(folder: Path, config: dict[str, Any], kind: str, outputs: int) -> tuple[float, ...] | None:
    given = config.get("thresholds", config.get("threshold"))
    if kind != "multilabel" or given is None:
        return None
    values = given if isinstance(given, list) else [given] * outputs
    if len(values) != outputs or not all(type(one) in (int, float) and 0 < one < 1 for one in values):
        raise UserError(f"{folder / CONFIG}: thresholds are numbers between 0 and 1, one for each of {outputs} labels")
    return tuple(float(one) for one in values)
