"""Writing one module as one ONNX file, at the operator set and IR that were asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from onetrunk.export.modules import EmbeddingSegment, ServedHead, SingleModel, StateSegment, TokenSegment
from onetrunk.export.release import IR_VERSION, OPSET, Release
from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, INPUT_IDS, TOKEN_TYPE_IDS, Segment
from onetrunk.tasks.head_spec import HeadSpec

# Exporters specialise sizes 0 and 1: an example must be larger.
_EXAMPLE_BATCH, _EXAMPLE_TOKENS = 2, 5


class ExportError(OneTrunkError):
    """A module could not be written as the ONNX file that its repository needs."""


def export_segment(trunk: Trunk, segment: Segment, path: Path, release: Release) -> None:
    """Writes a segment of the trunk.

    Raises:
        ExportError: the file would not be one that the release can load.
    """
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    types = torch.zeros_like(tokens)
    module: nn.Module
    example: tuple[Tensor, ...]
    if segment.stop == 0:
        module, example = EmbeddingSegment(trunk), (tokens, types)
    elif segment.reads_tokens:
        module, example = TokenSegment(trunk, segment), (tokens, tokens, types)
    else:
        state = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, trunk.width)
        module, example = StateSegment(trunk, segment), (state, tokens)
    _export(module, example, path, segment.inputs, segment.output, release)


def export_head(head: Head, spec: HeadSpec, path: Path, release: Release) -> None:
    """Writes a head, its last layer folded, its output named after its task.

    Raises:
        ExportError: the file would not be one that the release can load.
    """
    state = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, spec.width)
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    _export(ServedHead(head, spec), (state, tokens), path, (HIDDEN_STATE, ATTENTION_MASK), spec.task, release)


def export_single(
    trunk: Trunk, head: Head, spec: HeadSpec, path: Path, release: Release, *, whole: bool = True
) -> None:
    """Writes one ordinary model for one task: the trunk up to the head's tap and the head, in one file.

    Args:
        trunk: the trunk.
        head: the head; with the layers of the trunk above its tap, the file is a whole encoder.
        spec: the head's.
        path: where to.
        release: what is to load it.
        whole: whether the last layer runs for all tokens, as is usual; otherwise it is folded.

    Raises:
        ExportError: the file would not be one that the release can load.
    """
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    module = SingleModel(trunk, ServedHead(head, spec), whole)
    inputs = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
    _export(module, (tokens, tokens, torch.zeros_like(tokens)), path, inputs, spec.task, release)


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    output: str,
    release: Release,
) -> None:
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with torch.no_grad():
        result = module.eval()(*example)
    # A state has tokens, scores have none.
    axes[output] = {0: "batch", 1: "tokens"} if result.dim() == 3 else {0: "batch"}
    with warnings.catch_warnings():
        # The tracing exporter is five times faster than the one that follows it; docs/decisions has the figures.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    _check_file(path, axes, result.shape, release)


def _check_file(path: Path, axes: dict[str, dict[int, str]], shape: Sequence[int], release: Release) -> None:
    model = onnx.load(path)
    model.ir_version = IR_VERSION
    (output,) = model.graph.output
    for axis, size in enumerate(shape):
        # Behind a loop, the exporter has lost what size it is, and made up a name.
        if axis not in axes[output.name]:
            output.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.checker.check_model(model)
    onnx.save(model, path)
    check_release(model, path.name, release)
    for tensor in [*model.graph.input, *model.graph.output]:
        dims = tensor.type.tensor_type.shape.dim
        for axis, symbol in axes[tensor.name].items():
            if dims[axis].dim_param != symbol:
                raise ExportError(f"{path.name}: axis {axis} of {tensor.name} is fixed; it must be {symbol!r}")


def check_release(model: onnx.ModelProto, name: str, release: Release) -> None:
    """Raises ExportError where a file is newer than what the release is known to read."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if model.ir_version > release.max_ir or opset > release.max_opset:
        raise ExportError(
            f"{name}: IR {model.ir_version} and opset {opset}, but Triton {release.name} reads "
            f"IR {release.max_ir} and opset {release.max_opset} at most"
        )
