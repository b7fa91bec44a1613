"""The same repository with one trunk model that gives the states of all taps, in place of segments."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.export.merge import merge_models
from onetrunk.protocol.names import CONFIG_FILE, MANIFEST, MULTITASK, MULTITASK_TOKENS, segment_named
from onetrunk.repository.configs import config_text

_TRUNK = "trunk_whole"


def write_one_trunk(ours: Path, folder: Path) -> None:
    """Writes it, of the files of a repository that build-repo wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ours, folder, copy_function=os.link)
    (folder / MANIFEST).unlink(missing_ok=True)  # it would say that the changed files were tampered with
    configs = {name: _read(folder / name) for name in (MULTITASK, MULTITASK_TOKENS)}
    steps = [step for step in configs[MULTITASK].ensemble_scheduling.step if segment_named(step.model_name)]
    parts = {
        step.model_name: onnx.load(folder / step.model_name / str(step.model_version) / "model.onnx") for step in steps
    }
    model = merge_models(parts, [part.graph.output[0].name for part in parts.values()], _TRUNK)
    (folder / _TRUNK / "1").mkdir(parents=True)
    onnx.save(model, folder / _TRUNK / "1" / "model.onnx")
    segments = [_read(folder / name) for name in parts]
    inputs = {tensor.name for tensor in model.graph.input}
    config = pb.ModelConfig()
    config.CopyFrom(segments[0])
    config.name = _TRUNK
    del config.input[:]
    config.input.extend({t.name: t for part in segments for t in part.input if t.name in inputs}.values())
    config.version_policy.specific.versions[:] = [1]
    for segment in segments[1:]:
        config.output.extend(segment.output)
    _write(folder / _TRUNK, config)
    for name, ensemble in configs.items():
        merged = pb.ModelEnsembling.Step(model_name=_TRUNK, model_version=1)
        for step in steps:
            merged.input_map.update({name: source for name, source in step.input_map.items() if name in inputs})
            merged.output_map.update(step.output_map)
        rest = [step for step in ensemble.ensemble_scheduling.step if not segment_named(step.model_name)]
        del ensemble.ensemble_scheduling.step[:]
        ensemble.ensemble_scheduling.step.extend([*rest, merged])
        _write(folder / name, ensemble)


def _read(model: Path) -> pb.ModelConfig:
    return text_format.Parse((model / CONFIG_FILE).read_text(encoding="utf-8"), pb.ModelConfig())


def _write(model: Path, config: pb.ModelConfig) -> None:
    path = model / CONFIG_FILE
    # The folder's files are links to the original's, which must not change.
    path.unlink(missing_ok=True)
    path.write_text(config_text(config), encoding="utf-8")
