"""Export of one torch module to one ONNX file, at the operator set and IR that the release reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner
import onnx.parser
import torch
from torch import Tensor, nn

from onetrunk.export.errors import ExportError
from onetrunk.export.release import IR_VERSION, OPSET, Release
from onetrunk.nn.embedding import MeanHead
from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, INPUT_IDS, TOKEN_TYPE_IDS, Segment
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.crf import ONNX_FUNCTIONS

# The exporter treats sizes 0 and 1 as constants, so the example must be larger.
_EXAMPLE_BATCH, _EXAMPLE_TOKENS = 2, 5

# The domain of our own operators, each a loop that tracing would unroll. In the file, functions take their place.
_OURS = "onetrunk"


def export_segment(trunk: Trunk, segment: Segment, path: Path, release: Release) -> None:
    """Export a segment of the trunk, or a limb.

    Args:
        trunk: The trunk; for a limb, the branch that has its layers.
        segment: The segment to export.
        path: The file to write.
        release: The Triton release that must be able to load the file.

    Raises:
        ExportError: The release could not load the file.
    """
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    # The exporter drops an input that nothing reads, and an ensemble could not feed it.
    types = (torch.zeros_like(tokens),) if trunk.reads_types else ()
    module: nn.Module
    example: tuple[Tensor, ...]
    if segment.stop == 0:
        module, example = EmbeddingSegment(trunk), (tokens, *types)
    elif segment.reads_tokens:
        module, example = TokenSegment(trunk, segment), (tokens, tokens, *types)
    else:
        state = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, trunk.width)
        module, example = StateSegment(trunk, segment), (state, tokens)
    export_module(module, example, path, segment.inputs(token_types=trunk.reads_types), segment.output, release)


def export_head(head: Head | MeanHead, spec: HeadSpec, path: Path, release: Release) -> None:
    """Export a head with its last layer folded and its output named after its task.

    Args:
        head: The head.
        spec: What the head answers, and which hidden state it reads.
        path: The file to write.
        release: The Triton release that must be able to load the file.

    Raises:
        ExportError: The release could not load the file.
    """
    state = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, spec.width)
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    export_module(ServedHead(head, spec), (state, tokens), path, (HIDDEN_STATE, ATTENTION_MASK), spec.task, release)


def export_single(
    trunk: Trunk, head: Head, spec: HeadSpec, path: Path, release: Release, *, whole: bool = True
) -> None:
    """Export a conventional single-task model: the trunk up to the head's tap and the head, in one file.

    Args:
        trunk: The trunk.
        head: The head. If it consists of the trunk's layers above its tap, the file is a whole encoder.
        spec: What the head answers, and which hidden state it reads.
        path: The file to write.
        release: The Triton release that must be able to load the file.
        whole: Whether the last layer runs for all tokens, as is usual, or is folded.

    Raises:
        ExportError: The release could not load the file.
    """
    tokens = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
    module = SingleModel(trunk, ServedHead(head, spec), whole)
    types = {TOKEN_TYPE_IDS: torch.zeros_like(tokens)} if trunk.reads_types else {}
    example = {INPUT_IDS: tokens, ATTENTION_MASK: tokens, **types}
    export_module(module, tuple(example.values()), path, tuple(example), spec.task, release)


class TokenSegment(nn.Module):
    """A segment that maps token ids to the hidden state at a tap."""

    def __init__(self, trunk: Trunk, segment: Segment) -> None:
        super().__init__()
        self.trunk, self.segment = trunk, segment

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the hidden state at the segment's end.

        *Shape of each input:* (batch_size, tokens). *Shape of the result:* (batch_size, tokens, width).
        """
        state = self.trunk.encoder.embed(input_ids, token_type_ids)
        return self.trunk.run_layers(state, attention_mask, 0, self.segment.stop)


class EmbeddingSegment(nn.Module):
    """The segment that maps token ids to the embeddings (tap 0)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the embeddings.

        *Shape of each input:* (batch_size, tokens). *Shape of the result:* (batch_size, tokens, width).
        """
        return self.trunk.encoder.embed(input_ids, token_type_ids)


class StateSegment(nn.Module):
    """A segment that maps the hidden state at a tap to that at a deeper tap."""

    def __init__(self, trunk: Trunk, segment: Segment) -> None:
        super().__init__()
        self.trunk, self.segment = trunk, segment

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden state at the segment's end. *Shape:* (batch_size, tokens, width).

        Args:
            hidden_state: The hidden state at the segment's start. *Shape:* (batch_size, tokens, width)
            attention_mask: 1 for tokens, 0 for padding. *Shape:* (batch_size, tokens)
        """
        return self.trunk.run_layers(hidden_state, attention_mask, self.segment.start, self.segment.stop)


class ServedHead(nn.Module):
    """A head together with what turns its raw outputs into the scores that a user reads, such as a softmax."""

    def __init__(self, head: Head | MeanHead, spec: HeadSpec) -> None:
        super().__init__()
        self.head, self.spec, self.kind = head, spec, get_kind(spec.kind)

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores, the last layer computed folded. *Shape:* (batch_size, the kind's dims).

        Args:
            hidden_state: The hidden state at the head's tap. *Shape:* (batch_size, tokens, width)
            attention_mask: 1 for tokens, 0 for padding. *Shape:* (batch_size, tokens)
        """
        return self.kind.output.scores(self.head(hidden_state, attention_mask), self.spec, self.head.output)

    def forward_whole(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the same scores, the last layer computed for all tokens."""
        return self.kind.output.scores(
            self.head.forward_whole(hidden_state, attention_mask), self.spec, self.head.output
        )


class SingleModel(nn.Module):
    """A conventional single-task model: token ids to scores, through an encoder that is shared with nothing.

    It is the model with which a repository's cost is compared. It is never served.
    """

    def __init__(self, trunk: Trunk, served: ServedHead, whole: bool) -> None:
        super().__init__()
        self.trunk, self.served, self.whole = trunk, served, whole
        self.branch = trunk.branch(served.spec.limb_id)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the scores.

        *Shape of each input:* (batch_size, tokens). *Shape of the result:* (batch_size, the kind's dims).
        """
        state = self.trunk.encoder.embed(input_ids, token_type_ids)
        state = self.branch.run_layers(state, attention_mask, 0, self.served.spec.tap)
        if self.whole:
            return self.served.forward_whole(state, attention_mask)
        result: Tensor = self.served(state, attention_mask)
        return result


def export_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    output: str,
    release: Release,
) -> None:
    """Export a module, for batches of any size and texts of any length.

    Args:
        module: The module.
        example: A batch of at least two texts. *Shape of each tensor:* (batch_size, tokens, ...)
        path: The file to write.
        inputs: The names of its inputs.
        output: The name of its only output.
        release: The Triton release that must be able to load the file.

    Raises:
        ExportError: The release could not load the file, or an axis of the batch's is fixed.
    """
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with torch.no_grad():
        result = module.eval()(*example)
    # A hidden state has an axis of tokens, scores have none.
    axes[output] = {0: "batch", 1: "tokens"} if result.dim() == 3 else {0: "batch"}
    with warnings.catch_warnings():
        # The tracing exporter warns that it is deprecated. It is five times faster than its successor; docs/decisions
        # has the figures.
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


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with what our own operators compute in place of them."""
    if not any(node.domain == _OURS for node in model.graph.node):
        return model
    model.functions.extend(onnx.parser.parse_function(text) for text in ONNX_FUNCTIONS)
    found = onnx.inliner.inline_local_functions(model)
    kept = [entry for entry in found.opset_import if entry.domain != _OURS]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


def _check_file(path: Path, axes: dict[str, dict[int, str]], shape: Sequence[int], release: Release) -> None:
    model = _inlined(onnx.load(path))
    model.ir_version = IR_VERSION
    (output,) = model.graph.output
    for axis, size in enumerate(shape):
        # After a loop, the exporter no longer knows the size of an axis and invents a symbol for it.
        if axis not in axes[output.name]:
            output.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.checker.check_model(model)
    onnx.save(model, path)
    release.check(model, path.name)
    for tensor in [*model.graph.input, *model.graph.output]:
        dims = tensor.type.tensor_type.shape.dim
        for axis, symbol in axes[tensor.name].items():
            if dims[axis].dim_param != symbol:
                raise ExportError(f"{path.name}: axis {axis} of {tensor.name} is fixed; it must be {symbol!r}")
