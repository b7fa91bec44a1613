"""Where a bundle comes from: a folder, a repository of a model hub, or a version in an MLflow model registry."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onetrunk.files import cache_root, replaced_folder, translate_os_errors
from onetrunk.nn.bundle import CARD, WEIGHTS, load_bundle
from onetrunk.nn.mlflow_registry import SCHEME as MLFLOW
from onetrunk.nn.mlflow_registry import Registry, parse_model
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.head_json import HEAD_JSON

HUB = "hf:"
_HUB_ID = re.compile(r"hf:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FILES = (HEAD_JSON, WEIGHTS, CARD)
_PIPELINES = {"classification": "text-classification", "multilabel": "text-classification"}
_PIPELINES |= {"regression": "text-classification", "tagging": "token-classification"}


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder on this machine, and where it came from.

    Attributes:
        folder: The folder.
        about: What the log of a deployment is to tell of it, such as ``source`` and the commit; empty for a folder.
    """

    folder: Path
    about: Mapping[str, str] = field(default_factory=dict)


def is_remote(source: str | Path) -> bool:
    """Return whether a text names a bundle that is to be fetched."""
    return str(source).startswith((HUB, MLFLOW))


def find_bundle(source: str | Path) -> BundleSource:
    """Return a bundle's folder; one that is elsewhere is fetched into the caches, once for each commit or version.

    Args:
        source: A folder, ``hf:OWNER/NAME`` with ``@REVISION`` or without, or ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.

    Raises:
        UserError: The text names nothing that there is, or what is there is no bundle.
        OneTrunkError: The hub or the registry does not answer, or the disk is full.
    """
    text = str(source)
    if text.startswith(HUB):
        return _from_hub(text)
    if text.startswith(MLFLOW):
        return _from_registry(text)
    folder = Path(source)
    if not folder.exists() and _HUB_ID.fullmatch(f"{HUB}{text}"):
        raise UserError(f"{text}: no such folder; a repository of a hub is {HUB}{text}")
    return BundleSource(folder)


def pull_bundle(source: str, heads: Path) -> Path:
    """Copy a bundle into a folder of bundles, under the name of its task.

    Args:
        source: See ``find_bundle``.
        heads: The folder of bundles.

    Returns:
        The bundle's folder. A bundle that was there before has been replaced.

    Raises:
        UserError: There is no such bundle, it is broken, or what is in its place is no bundle.
        OneTrunkError: It could not be fetched or written.
    """
    found = find_bundle(source)
    bundle = load_bundle(found.folder, any_folder=True)
    target = heads / bundle.spec.task
    with replaced_folder(target, HEAD_JSON) as new:
        _copy(found.folder, new)
    return target


def push_bundle(folder: Path, target: str, *, private: bool = False) -> str:
    """Write a bundle into a repository of a model hub, in one commit.

    The token is the one that the hub's own tools use: ``HF_TOKEN``, or what ``hf auth login`` has saved.

    Args:
        folder: The bundle.
        target: ``hf:OWNER/NAME``; the repository is made if there is none.
        private: Whether a repository that is made can be seen by its owner only.

    Returns:
        The URL of the commit.

    Raises:
        UserError: The folder is no bundle, or the text names no repository.
        OneTrunkError: The hub refuses or does not answer.
    """
    repository, revision = _hub_id(target)
    if revision is not None:
        raise UserError(f"{target}: a push makes a new commit: leave @{revision} out")
    bundle = load_bundle(folder, any_folder=True)
    card = _front_matter(bundle.spec) + (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).exists() else ""
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {name: str(folder / name) for name in (HEAD_JSON, WEIGHTS) if (folder / name).exists()}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    if card:
        operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    with _told(target):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations=operations, commit_message=f"Head {bundle.spec.task}")
    return str(done.commit_url)


def _from_hub(text: str) -> BundleSource:
    repository, revision = _hub_id(text)
    from huggingface_hub import snapshot_download

    with _told(text):
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))
    if not _COMMIT.fullmatch(snapshot.name):
        raise OneTrunkError(f"{text}: the hub named the commit {snapshot.name!r:.80}, which is none: is it a hub?")
    # The hub's client keeps files in a folder with the commit's name, as links to elsewhere; a bundle has its own.
    place = cache_root() / "heads" / f"hf--{repository.replace('/', '--')}" / snapshot.name
    with translate_os_errors(place):
        _keep(place, text, lambda new: _copy(snapshot, new))
    return BundleSource(place, {"source": f"hf:{repository}@{snapshot.name}", "asked": text})


def _from_registry(text: str) -> BundleSource:
    asked = parse_model(text)
    registry = Registry.from_environment()
    version = registry.find(asked)
    # A model that was deleted and registered anew has the same numbers again, but other runs.
    told = hashlib.sha256(json.dumps(dict(version.about), sort_keys=True).encode()).hexdigest()[:8]
    place = cache_root() / "heads" / f"mlflow--{registry.key}--{version.name}" / f"{version.version}-{told}"
    with translate_os_errors(place):
        _keep(place, text, lambda new: registry.download(version, _FILES, (HEAD_JSON,), new))
    return BundleSource(place, {"source": f"models:/{version.name}/{version.version}", "asked": text, **version.about})


def _hub_id(text: str) -> tuple[str, str | None]:
    found = _HUB_ID.fullmatch(text)
    if found is None:
        raise UserError(f"{text}: no repository of a hub; give hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    return found["repository"], found["revision"]


def _keep(place: Path, source: str, fill: Callable[[Path], object]) -> None:
    """Fill a folder with a bundle aside, and move it into its place, unless a whole one is there.

    Raises:
        UserError: What was fetched is no bundle, or a broken one. It is not kept: the next call fetches it anew.
    """
    if place.exists():
        try:
            load_bundle(place, any_folder=True)
        except UserError:  # written when the power was cut, or changed since
            shutil.rmtree(place)
        else:
            return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as aside:
        new = Path(aside) / "new"
        new.mkdir()
        fill(new)
        try:
            load_bundle(new, any_folder=True)
        except UserError as error:
            raise UserError(str(error).replace(str(new), source)) from None
        os.replace(new, place)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in _FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _front_matter(spec: Any) -> str:
    """Return what a hub reads of a card: the kind of task, the metric, and the trunk."""
    lines = ["---", "library_name: onetrunk", f"tags: [onetrunk, {spec.kind}]"]
    if spec.kind in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[spec.kind]}")
    return "\n".join([*lines, f'trunk: "{spec.trunk}"', "---", "", ""])


@contextmanager
def _told(asked: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line."""
    try:
        yield
    except OneTrunkError:
        raise
    except Exception as error:  # many types, from network errors to licence gates
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OneTrunkError(f"{asked}: the hub did not do it: {reason:.300}") from error
