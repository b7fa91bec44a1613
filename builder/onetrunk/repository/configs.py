"""Triton configs of the tokenizer, segments, heads and groups of heads.

They are protobuf messages, so that Triton's own schema checks them.

Source of the rules: Triton's documents "Model Configuration" and "Ensemble Models", and the ONNX Runtime backend's
README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.manifest import Dtype, Placement
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    HIDDEN_STATE,
    PADDED,
    TOKEN_COUNT,
    TOKEN_TYPE_IDS,
    TOKEN_WORDS,
    TOKENIZER,
    TRUNCATED,
    WINDOW_OVERLAP,
    WINDOWS,
    Segment,
    head_name,
)
from onetrunk.repository.versions import Group
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

MAX_BATCH_SIZE = 32
"""The most texts of a batch, unless texts are so long that fewer are allowed."""
MAX_TEXT_BYTES = 1 << 20
MAX_WINDOWS = 128
"""The most windows of a text. With 128 tokens each, they are 12,000 tokens, or 25 pages."""

_ONNX_BACKEND = "onnxruntime"
_THREADS = "intra_op_thread_count"

# By default every ONNX Runtime session uses all cores, and a trunk and eight heads would compete for them. A second
# thread of a segment shortens a single request's way, but in NVIDIA's backend it spins while it waits, which no
# parameter turns off, and takes the core from the others.
_ONE_THREAD = {_THREADS: "1", "inter_op_thread_count": "1"}


def tokenizer_config(
    *,
    buckets: tuple[int, ...],
    vocab_size: int,
    pad_token_id: int,
    version: int,
    token_types: bool = True,
    buckets_from: str | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> pb.ModelConfig:
    """Return the config of the Python model that turns text or token ids into checked token ids, padded to a bucket.

    Args:
        buckets: The padded lengths in tokens, in increasing order.
        vocab_size: The number of token ids.
        pad_token_id: The id of the padding token.
        version: The version to serve.
        token_types: Whether the trunk reads token types. They are an input either way, so that a client need not know.
        buckets_from: The texts from which the buckets were chosen, for a reader of the config.
        max_batch_size: The most texts of a batch. The state gives all other models the same.
    """
    config = _part(TOKENIZER, "python", [version])
    config.max_batch_size = max_batch_size
    for name in ("text", "text_pair"):
        config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_STRING, dims=[1], optional=True))
    for name in PADDED:
        config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_INT64, dims=[-1], optional=True))
    config.input.append(pb.ModelInput(name=WINDOW_OVERLAP, data_type=pb.TYPE_FP32, dims=[1], optional=True))
    for name, padded in PADDED.items():
        if token_types or name != TOKEN_TYPE_IDS:
            config.output.append(pb.ModelOutput(name=padded, data_type=pb.TYPE_INT64, dims=[-1]))
    config.output.append(pb.ModelOutput(name=TRUNCATED, data_type=pb.TYPE_BOOL, dims=[1]))
    config.output.append(pb.ModelOutput(name=TOKEN_COUNT, data_type=pb.TYPE_INT64, dims=[1]))
    config.output.append(pb.ModelOutput(name=TOKEN_WORDS, data_type=pb.TYPE_INT64, dims=[-1, 3]))
    config.output.append(pb.ModelOutput(name=WINDOWS, data_type=pb.TYPE_INT64, dims=[-1, 4]))
    _set_parameters(
        config,
        {
            "max_length": str(buckets[-1]),
            "buckets": ",".join(map(str, buckets)),
            "vocab_size": str(vocab_size),
            "pad_token_id": str(pad_token_id),
            "max_text_bytes": str(MAX_TEXT_BYTES),
            "max_windows": str(MAX_WINDOWS),
        },
    )
    if buckets_from is not None:
        _set_parameters(config, {"buckets_from": buckets_from})
    return config


def feeds_token_types(tokenizer: pb.ModelConfig) -> bool:
    """Return whether the trunk above a tokenizer reads token types."""
    return any(tensor.name == PADDED[TOKEN_TYPE_IDS] for tensor in tokenizer.output)


def segment_config(
    segment: Segment, *, width: int, trunk: str, version: int, dtype: Dtype = "fp32", token_types: bool = True
) -> pb.ModelConfig:
    """Return the config of a segment of the trunk, or of a limb.

    Args:
        segment: The segment.
        width: The size of the hidden states.
        trunk: The trunk's identity.
        version: The version to serve.
        dtype: The dtype in which it computes. Its inputs and outputs are FP32.
        token_types: Whether the trunk reads token types.
    """
    config = _onnx_part(segment.name, [version])
    for name in segment.inputs(token_types=token_types):
        if name in PADDED:
            config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_INT64, dims=[-1]))
        else:
            config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_FP32, dims=[-1, width]))
    config.output.append(pb.ModelOutput(name=segment.output, data_type=pb.TYPE_FP32, dims=[-1, width]))
    _set_parameters(config, {"trunk": trunk, "from": str(segment.start), "to": str(segment.stop), "precision": dtype})
    if segment.limb:
        _set_parameters(config, {"limb": segment.limb})
    return config


def head_config(spec: HeadSpec, *, versions: Sequence[int], dtype: Dtype = "fp32") -> pb.ModelConfig:
    """Return the config of a head whose ``versions`` Triton loads. The ensembles are made from its parameters alone."""
    config = _onnx_part(head_name(spec.task), versions)
    _add_state(config, spec.width)
    output = pb.ModelOutput(name=spec.task, data_type=pb.TYPE_FP32, dims=get_kind(spec.kind).output.dims(spec))
    if has_label_file(spec):
        output.label_filename = label_file(spec.task)
    config.output.append(output)
    parameters = {
        "task": spec.task,
        "kind": spec.kind,
        "form": spec.form,
        "metric": spec.metric,
        "tap": str(spec.tap),
        "layers": str(spec.layers),
        "trunk": spec.trunk,
        "precision": dtype,
    }
    if spec.limb is not None:
        parameters["limb"] = spec.limb
    if spec.range:
        parameters["range"] = ",".join(_shortest(bound) for bound in spec.range)
    output_spec = get_kind(spec.kind).output
    served = output_spec.client_info(spec)
    if output_spec.reads_as is not None:
        served["reads_as"] = output_spec.reads_as
    if spec.long_texts == "windows":
        served |= {"long_texts": spec.long_texts, "window_overlap": spec.window_overlap}
    if spec.reference is not None:
        served["reference"] = spec.reference.model_dump(mode="json", exclude_none=True)
    if served:
        parameters["served"] = json.dumps(served)
    _set_parameters(config, parameters)
    return config


def group_config(group: Group, *, width: int, version: int) -> pb.ModelConfig:
    """Return the config of a model that holds several heads of one tap, and maybe the limb below them."""
    config = _onnx_part(group.name, [version])
    _add_state(config, width, group.input)
    for task, member in sorted(group.heads.items()):
        config.output.append(pb.ModelOutput(name=task, data_type=pb.TYPE_FP32, dims=[member.outputs]))
    heads = ",".join(f"{task}:{member.version}" for task, member in sorted(group.heads.items()))
    parameters = {"tap": str(group.tap), "trunk": group.trunk, "heads": heads}
    if group.segment is not None:
        parameters["segment"] = f"{group.segment.name}:{group.segment.version}"
    _set_parameters(config, parameters)
    return config


def has_label_file(spec: HeadSpec) -> bool:
    """Return whether a head has one score a label, so that Triton's classification extension can name them."""
    return spec.labels is not None and get_kind(spec.kind).output.dims(spec) == [len(spec.labels)]


def label_file(task: str) -> str:
    """Return the name of the file beside a config that lists a task's labels, one a line, in order of the scores."""
    return f"labels_{task}.txt"


def config_text(config: pb.ModelConfig) -> str:
    """Return the content of ``config.pbtxt``."""
    text: str = text_format.MessageToString(config)
    return text


def placed_text(config: pb.ModelConfig, placement: Placement) -> str:
    """Return the content of a part's ``config.pbtxt`` in a placement, with the measurement as a leading comment."""
    threads = placement.threads.get(config.name)
    lines = [threads.reason, placement.measured] if threads and config.backend == _ONNX_BACKEND else []
    return "".join(f"# {line}\n" for line in lines if line) + config_text(place(config, placement))


def place(config: pb.ModelConfig, placement: Placement) -> pb.ModelConfig:
    """Return a part's config with the device and threads of a placement. Only ONNX models are placed.

    Configs are written for the CPU with default threads, and placed afterwards, so that a model of which the placement
    knows nothing, such as a head that is deployed later, keeps its defaults.
    """
    placed = pb.ModelConfig()
    placed.CopyFrom(config)
    if config.backend != _ONNX_BACKEND:
        return placed
    if placement.device == "gpu":
        for group in placed.instance_group:
            group.kind = pb.ModelInstanceGroup.KIND_GPU
        # The CPU only computes shapes then. Without a number, each model would start a thread a core, all waiting.
        placed.parameters[_THREADS].string_value = "1"
    elif threads := placement.threads.get(config.name):
        placed.parameters[_THREADS].string_value = str(threads.count)
    return placed


def parameters_of(config: pb.ModelConfig) -> dict[str, str]:
    """Return a config's parameters as plain text."""
    return {name: value.string_value for name, value in config.parameters.items()}


def pinned_version(config: pb.ModelConfig) -> int:
    """Return the only version that the config of a tokenizer, a segment or a group serves."""
    (version,) = config.version_policy.specific.versions
    return int(version)


def _part(name: str, backend: str, versions: Sequence[int]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.extend(versions)
    # Without a count Triton starts two instances, each with its own copy of the weights.
    config.instance_group.append(pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU))
    # Present but empty: waiting requests are batched, and no request waits in order to be batched.
    config.dynamic_batching.SetInParent()
    return config


def _onnx_part(name: str, versions: Sequence[int]) -> pb.ModelConfig:
    config = _part(name, _ONNX_BACKEND, versions)
    _set_parameters(config, _ONE_THREAD)
    return config


def _add_state(config: pb.ModelConfig, width: int, name: str = HIDDEN_STATE) -> None:
    config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_FP32, dims=[-1, width]))
    config.input.append(pb.ModelInput(name=ATTENTION_MASK, data_type=pb.TYPE_INT64, dims=[-1]))


def _shortest(number: float) -> str:
    """Return the shortest decimal that is read back as the same number."""
    return short if float(short := f"{number:g}") == number else repr(number)


def _set_parameters(config: pb.ModelConfig, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value
