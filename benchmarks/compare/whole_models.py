"""Repositories of whole models: what a trunk with heads is compared with, on the same Triton and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.distill.cost_measurement import untrained_head
from onetrunk.export.merge import merge_models
from onetrunk.export.onnx_file import export_single
from onetrunk.export.release import DEFAULT_RELEASE, IR_VERSION, OPSET, get_release
from onetrunk.files import atomic_write
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.ensemble_info import EnsembleInfo, TaskInfo
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    CONFIG_FILE,
    HIDDEN_STATE,
    INPUT_IDS,
    MULTITASK,
    MULTITASK_TOKENS,
    ONETRUNK_PARAMETER,
    PADDED,
    TOKEN_TYPE_IDS,
    TOKENIZER,
    Segment,
    hidden_name,
)
from onetrunk.repository.artifacts import tokenizer_files
from onetrunk.repository.buckets import buckets_up_to
from onetrunk.repository.configs import MAX_BATCH_SIZE, config_text, parameters_of, tokenizer_config

TRUNK_OUTPUT = "state"
_TOKEN_INPUTS = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)


def token_inputs(trunk: Trunk) -> tuple[str, ...]:
    """The inputs of a whole model: token types only where the trunk reads them."""
    return _TOKEN_INPUTS if trunk.reads_types else _TOKEN_INPUTS[:2]


@dataclass(frozen=True)
class WholeModel:
    """A model from token ids to scores.

    Attributes:
        name: its name in the repository.
        file: its ONNX file.
        outputs: task -> how many numbers it gives.
        threads: of its ONNX Runtime session.
        instances: how many processes serve it, each with its own copy of the weights.
    """

    name: str
    file: Path
    outputs: Mapping[str, int]
    threads: int
    instances: int = 1


def single_file(trunk: Trunk, task: str, file: Path) -> None:
    """One ordinary model for one task: the whole encoder and an output, its last layer run whole, as is usual.

    A file that is there is kept: it depends on nothing but the trunk, while others depend on a repository that changes.
    """
    if file.exists():
        return
    head, spec = untrained_head(trunk, tap=0, layers=trunk.depth, task=task)
    with atomic_write(file) as aside:
        export_single(trunk, head, spec, aside, get_release(DEFAULT_RELEASE))


def fused_file(segments: Mapping[Segment, Path], heads: Mapping[str, tuple[str, Path]], file: Path) -> None:
    """Trunk and heads of a repository in one file.

    Args:
        segments: segment -> its file.
        heads: task -> the hidden state that it reads, and its file.
        file: where to.
    """
    parts = {segment.name: onnx.load(path) for segment, path in sorted(segments.items())}
    for task, (state, path) in heads.items():
        parts[task] = _with_input(onnx.load(path), HIDDEN_STATE, state)
    _save(merge_models(parts, list(heads), "fused"), file)


def trunk_file(segments: Mapping[Segment, Path], file: Path) -> None:
    """The trunk alone, up to its last segment.

    It answers with two numbers of the state, since handing the whole state to a client would cost more than many heads.
    """
    trunk = {segment: path for segment, path in sorted(segments.items()) if not segment.limb}
    parts = {segment.name: onnx.load(path) for segment, path in trunk.items()}
    deepest = hidden_name(max(segment.stop for segment in trunk))
    last = next(part for part in parts.values() if part.graph.output[0].name == deepest)
    parts["tail"] = _tail(deepest, last)
    _save(merge_models(parts, [TRUNK_OUTPUT], "trunk"), file)


def empty_file(output: str, file: Path, inputs: Sequence[str] = _TOKEN_INPUTS) -> None:
    """A model that computes nothing: it gives back the first two token ids."""
    ids = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in inputs]
    nodes = [
        helper.make_node("Slice", [INPUT_IDS, "from", "to", "axis"], ["first"]),
        helper.make_node("Cast", ["first"], [output], to=onnx.TensorProto.FLOAT),
    ]
    given = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "empty", ids, [given], _slice_of_two())
    _save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), file)


def write_repository(folder: Path, trunk: Trunk, models: Sequence[WholeModel], max_length: int) -> None:
    """A repository of whole models behind the tokenizer, with the two ensembles that a server loads."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = tokenizer_config(
        buckets=buckets_up_to(max_length, trunk.max_positions),
        vocab_size=trunk.vocab_size,
        pad_token_id=trunk.pad_token_id,
        version=1,
    )
    _write(folder, tokenizer, tokenizer_files(trunk))
    for model in models:
        _write(folder, _model_config(model, trunk), {"model.onnx": model.file})
    for name in (MULTITASK, MULTITASK_TOKENS):
        _write(folder, _ensemble(name, trunk, tokenizer, models), {})


def _save(model: onnx.ModelProto, file: Path) -> None:
    # Into a new file: repositories have links to the one that is there, and it must not change under them.
    with atomic_write(file) as aside:
        onnx.save(model, aside)


def _write(folder: Path, config: pb.ModelConfig, files: Mapping[str, Path]) -> None:
    version = folder / config.name / "1"
    version.mkdir(parents=True)
    (version / ".keep").touch()
    for name, source in files.items():
        # A link costs no disk; eight models of BERT-base have three gigabytes.
        (version / name).hardlink_to(source) if name.endswith(".onnx") else shutil.copyfile(source, version / name)
    (version.parent / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")


def _model_config(model: WholeModel, trunk: Trunk) -> pb.ModelConfig:
    config = pb.ModelConfig(name=model.name, backend="onnxruntime", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.append(1)
    config.instance_group.append(pb.ModelInstanceGroup(count=model.instances, kind=pb.ModelInstanceGroup.KIND_CPU))
    config.dynamic_batching.SetInParent()
    for name in token_inputs(trunk):
        config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_INT64, dims=[-1]))
    for task, size in model.outputs.items():
        config.output.append(pb.ModelOutput(name=task, data_type=pb.TYPE_FP32, dims=[size]))
    config.parameters["intra_op_thread_count"].string_value = str(model.threads)
    config.parameters["inter_op_thread_count"].string_value = "1"
    return config


def _ensemble(name: str, trunk: Trunk, tokenizer: pb.ModelConfig, models: Sequence[WholeModel]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.append(1)
    source = "text" if name == MULTITASK else INPUT_IDS
    entry = next(tensor for tensor in tokenizer.input if tensor.name == source)
    config.input.append(pb.ModelInput(name=source, data_type=entry.data_type, dims=entry.dims))
    step = config.ensemble_scheduling.step.add(model_name=TOKENIZER, model_version=1)
    step.input_map[source] = source
    # Triton refuses a tensor of an ensemble that no model reads.
    padded = {name: PADDED[name] for name in token_inputs(trunk)}
    step.output_map.update({name: name for name in padded.values()})
    tasks = {}
    for model in models:
        step = config.ensemble_scheduling.step.add(model_name=model.name, model_version=1)
        step.input_map.update(padded)
        for task, size in model.outputs.items():
            step.output_map[task] = task
            config.output.append(pb.ModelOutput(name=task, data_type=pb.TYPE_FP32, dims=[size]))
            tasks[task] = TaskInfo(
                name=task, kind="classification", form="single", metric="accuracy", tap=0, layers=1, version=1
            )
    settings = parameters_of(tokenizer)
    info = EnsembleInfo(
        trunk=trunk.identity,
        max_length=int(settings["max_length"]),
        buckets=tuple(int(bucket) for bucket in settings["buckets"].split(",")),
        tasks=tasks,
    )
    config.parameters[ONETRUNK_PARAMETER].string_value = info.text()
    return config


def _with_input(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    for tensor in model.graph.input:
        if tensor.name == old:
            tensor.name = new
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    return model


def _slice_of_two() -> list[onnx.TensorProto]:
    places = (("from", 0), ("to", 2), ("axis", 1))
    return [helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]) for name, value in places]


def _tail(state: str, like: onnx.ModelProto) -> onnx.ModelProto:
    width = like.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    nodes = [
        helper.make_node("Gather", [state, "first"], ["cls"], axis=1),
        helper.make_node("Slice", ["cls", "from", "to", "axis"], [TRUNK_OUTPUT]),
    ]
    constants = [
        helper.make_tensor("first", onnx.TensorProto.INT64, [], [0]),
        *_slice_of_two(),
    ]
    graph = helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info(state, onnx.TensorProto.FLOAT, ["batch", "tokens", width])],
        [helper.make_tensor_value_info(TRUNK_OUTPUT, onnx.TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    return helper.make_model(graph, opset_imports=list(like.opset_import), ir_version=like.ir_version)
