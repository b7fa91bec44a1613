"""What a repository will hold, and what of it is there already. Nothing is written here."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.digest import sha256_file
from builder.errors import OneTrunkError, UserError
from builder.export.names import MODEL_FILE, Segment, cut_trunk, head_name
from builder.export.release import IR_VERSION, OPSET
from builder.model.bundle import Bundle, HeadSpec, find_bundles, load_bundle
from builder.model.trunk import Trunk
from builder.repository.configs import (
    TOKENIZER,
    config_text,
    head_config,
    label_file,
    segment_config,
    tokenizer_config,
)
from builder.repository.ensemble import ENSEMBLE_VERSION, HeadModel, ensemble_configs
from builder.repository.manifest import Manifest, source_hash

# Raised by one when the builder writes another ONNX file for the same weights: every model then gets a new version.
EXPORT_FORMAT = 1

TOKENIZER_CONTENTS = ("model.py", "tokenizer.json")


@dataclass(frozen=True)
class PlannedModel:
    """A part of the repository with a version folder of its own.

    Attributes:
        name: the model's folder.
        version: the version to be served.
        fresh: whether that version has to be made; otherwise it is on disk and whole.
        source: hash over everything that the version is made from.
        contents: what its version folder holds, by name.
    """

    name: str
    version: int
    fresh: bool
    source: str
    contents: tuple[str, ...] = (MODEL_FILE,)

    @property
    def files(self) -> list[str]:
        """The version folder's files as paths below the repository."""
        return [f"{self.name}/{self.version}/{name}" for name in self.contents]


@dataclass(frozen=True)
class RepositoryPlan:
    """The repository to be.

    Attributes:
        buckets: padded lengths in tokens.
        bundles: the heads to be served, by task.
        segments: the trunk's segments, lowest first.
        models: every part with a version folder, by name.
        part_texts: labels and configs of the parts: path below the repository -> content.
        ensemble_texts: the same for the ensembles.
        removed: folders of models that have gone.
    """

    buckets: tuple[int, ...]
    bundles: Mapping[str, Bundle]
    segments: Sequence[Segment]
    models: Mapping[str, PlannedModel]
    part_texts: Mapping[str, str]
    ensemble_texts: Mapping[str, str]
    removed: Sequence[str]

    @property
    def texts(self) -> dict[str, str]:
        """All texts, in the order in which they are moved in."""
        return {**self.part_texts, **self.ensemble_texts}


def select_bundles(heads: Path, tasks: Sequence[str] | None) -> dict[str, Bundle]:
    """The bundles of these tasks; of all tasks for None.

    Raises:
        UserError: there is no such head, or a bundle is broken.
    """
    folders = {folder.name: folder for folder in find_bundles(heads)}
    if not folders:
        raise UserError(f"{heads}: no head in it; train one with train-head, or give --heads")
    for task in tasks or ():
        if task not in folders:
            close = difflib.get_close_matches(task, folders, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"no head for task {task!r} in {heads}; there are: {', '.join(folders)}{hint}")
    return {task: load_bundle(folders[task]) for task in sorted(tasks or folders)}


def plan_repository(
    repository: Path,
    trunk: Trunk,
    bundles: Mapping[str, Bundle],
    buckets: tuple[int, ...],
    manifest: Manifest | None,
) -> RepositoryPlan:
    """Compares what is wanted with what the manifest says is there, and with the files themselves."""
    segments = cut_trunk({bundle.spec.tap for bundle in bundles.values()})
    sources = {TOKENIZER: source_hash(TOKENIZER, *(sha256_file(path) for path in tokenizer_files(trunk).values()))}
    form = (EXPORT_FORMAT, OPSET, IR_VERSION, trunk.identity)
    for segment in segments:
        sources[segment.name] = source_hash(*form, segment.start, segment.stop)
    for task, bundle in bundles.items():
        sources[head_name(task)] = source_hash(
            *form, task, _exported_spec(bundle.spec), sha256_file(bundle.folder / "head.safetensors")
        )
    models = {name: _plan_model(repository, name, source, manifest) for name, source in sources.items()}
    part_texts, ensemble_texts = _texts(trunk, bundles, segments, buckets, models)
    ensembles = {name.split("/")[0] for name in ensemble_texts}
    gone = sorted(set(manifest.models if manifest else ()) - set(models) - ensembles)
    return RepositoryPlan(buckets, bundles, segments, models, part_texts, ensemble_texts, gone)


def _exported_spec(spec: HeadSpec) -> str:
    """What a head's file depends on beside its weights."""
    fields = {"kind", "labels", "range", "tap", "layers"}
    if spec.query != "cls":
        # Only then: the usual query came without a name once, and such heads keep their versions.
        fields.add("query")
    return spec.model_dump_json(include=fields)


def tokenizer_files(trunk: Trunk) -> dict[str, Path]:
    """What the tokenizer's version folder holds: name -> where it is copied from."""
    # The server's package is not imported: it is looked up like a file, which its model in the repository then is.
    spec = importlib.util.find_spec("server")
    if spec is None or spec.origin is None:
        raise OneTrunkError("the package `server` is not installed beside `builder`: install onetrunk whole")
    model = Path(spec.origin).parent / "models" / "tokenizer" / "model.py"
    return dict(zip(TOKENIZER_CONTENTS, (model, trunk.folder / "tokenizer.json"), strict=True))


def _plan_model(repository: Path, name: str, source: str, manifest: Manifest | None) -> PlannedModel:
    contents = TOKENIZER_CONTENTS if name == TOKENIZER else (MODEL_FILE,)
    entry = manifest.models.get(name) if manifest else None
    if entry and entry.source == source:
        kept = PlannedModel(name, entry.version, False, source, contents)
        if all(_holds(repository / path, entry.files.get(path)) for path in kept.files):
            return kept
    # Never written over: a version that a server may hold keeps its files, so what follows is a new one.
    versions = [int(path.name) for path in (repository / name).glob("*") if path.name.isdecimal()]
    return PlannedModel(name, max(versions, default=0) + 1, True, source, contents)


def _holds(path: Path, digest: str | None) -> bool:
    return path.is_file() and sha256_file(path) == digest


def _texts(
    trunk: Trunk,
    bundles: Mapping[str, Bundle],
    segments: Sequence[Segment],
    buckets: tuple[int, ...],
    models: Mapping[str, PlannedModel],
) -> tuple[dict[str, str], dict[str, str]]:
    tokenizer = tokenizer_config(
        buckets=buckets,
        vocab_size=trunk.vocab_size,
        pad_token_id=trunk.pad_token_id,
        version=models[TOKENIZER].version,
    )
    cut = {
        segment: segment_config(segment, width=trunk.width, trunk=trunk.identity, version=models[segment.name].version)
        for segment in segments
    }
    heads = [
        HeadModel(head_config(bundle.spec, version=models[head_name(task)].version), bundle.spec.labels)
        for task, bundle in bundles.items()
    ]
    parts = {f"{head_name(head.task)}/{label_file(head.task)}": label_text(head) for head in heads if head.labels}
    for config in (tokenizer, *cut.values(), *(head.config for head in heads)):
        parts[f"{config.name}/config.pbtxt"] = config_text(config)
    ensembles = {}
    for config in ensemble_configs(tokenizer, cut, heads):
        # A model needs a version folder, an ensemble has nothing to put in it.
        ensembles[f"{config.name}/{ENSEMBLE_VERSION}/.keep"] = ""
        ensembles |= {f"{config.name}/{label_file(head.task)}": label_text(head) for head in heads if head.labels}
        ensembles[f"{config.name}/config.pbtxt"] = config_text(config)
    return parts, ensembles


def label_text(head: HeadModel) -> str:
    """The content of a head's label file."""
    return "".join(f"{label}\n" for label in head.labels or ())
