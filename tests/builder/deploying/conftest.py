"""A repository to deploy into, bundles to deploy, and ways to look at what is served."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.deploy import Deployer
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.head import new_head
from onetrunk.protocol.names import STAGING


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy of the tiny repository: grade, match, mood, topic."""
    return shutil.copytree(tiny_repository, tmp_path / "repository")


@pytest.fixture
def deployer(repository: Path, tiny_trunk_folder: Path) -> Deployer:
    """Changes the files only."""
    return Deployer(repository, url=None, trunk=tiny_trunk_folder)


@pytest.fixture
def bundle(tiny_heads: Path, tiny_trunk, tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle like one of the tiny heads, with an output bias that is shifted and fields that are changed."""

    def make(like: str = "mood", shift: float = 1.0, folder: str | None = None, **changes) -> Path:
        source = load_bundle(tiny_heads / like)
        spec = source.spec.model_copy(update=changes)
        if (spec.tap, spec.layers) == (source.spec.tap, source.spec.layers):
            head = source.head(tiny_trunk)
        else:
            head = new_head(tiny_trunk, outputs=len(spec.labels or "1"), tap=spec.tap, layers=spec.layers)
        with torch.no_grad():
            head.output.bias[0] += shift
        path = tmp_path / "bundles" / (folder or f"{spec.task}_{shift:g}")
        save_bundle(path, spec, head)
        return path

    return make


def _visible(repository: Path) -> dict[str, str]:
    """Everything that a server could read: path -> hash."""
    return {
        str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.rglob("*"))
        if path.is_file() and STAGING not in path.parts and path.name != "deployments.jsonl"
    }


def _chain(repository: Path, ensemble: str) -> dict[str, str]:
    """What an ensemble answers by: part -> hash of the file that it pins. Equal chains give equal answers."""
    config = text_format.Parse((repository / ensemble / "config.pbtxt").read_text(), pb.ModelConfig())
    found = {"settings": config.parameters["onetrunk"].string_value}
    for step in config.ensemble_scheduling.step:
        part = text_format.Parse((repository / step.model_name / "config.pbtxt").read_text(), pb.ModelConfig())
        assert step.model_version in part.version_policy.specific.versions, f"{step.model_name} is pinned, not loaded"
        folder = repository / step.model_name / str(step.model_version)
        files = [folder / name for name in ("model.onnx", "model.py", "tokenizer.json") if (folder / name).exists()]
        assert files, f"{folder} is pinned and has no model"
        found[step.model_name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return found


def _log_of(repository: Path) -> list[dict]:
    """The lines of the log of deployments."""
    path = repository / "deployments.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def visible() -> Callable[[Path], dict[str, str]]:
    """See _visible."""
    return _visible


@pytest.fixture
def chain() -> Callable[[Path, str], dict[str, str]]:
    """See _chain."""
    return _chain


@pytest.fixture
def log_of() -> Callable[[Path], list[dict]]:
    """See _log_of."""
    return _log_of
