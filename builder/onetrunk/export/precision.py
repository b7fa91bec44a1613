"""The precision of exported models: the value of ``--precision``, and fp32 ONNX files converted to it."""

from __future__ import annotations

import logging
import os
import warnings
from graphlib import TopologicalSorter
from pathlib import Path

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx

from onetrunk.export.errors import ExportError
from onetrunk.export.graph_view import names_read
from onetrunk.export.quantization import quantize_file
from onetrunk.export.sessions import ask_for_bf16
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import DTYPES, Dtype, Precision

_PARTS = ("trunk", "heads")

# Operators that stay fp32: sums over many values and exponentials need more bits or range than fp16 has.
_FP32_OPERATORS = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")


def parse_precision(text: str) -> Precision:
    """Parse one dtype for all parts, such as ``int8``, or one per part, such as ``trunk=fp32,heads=int8``.

    A part that is not named stays fp32.

    Raises:
        UserError: The text has neither form, or names an unknown dtype or part.
    """
    if "=" not in text:
        return Precision(trunk=_dtype(text, text), heads=_dtype(text, text))
    found: dict[str, Dtype] = {}
    for item in text.split(","):
        part, _, name = (piece.strip() for piece in item.partition("="))
        if part not in _PARTS or part in found:
            wrong = f"{part!r} is given twice" if part in found else f"there is no part {part!r}"
            raise UserError(f"--precision {text}: {wrong}; parts are trunk and heads, as in trunk=fp32,heads=int8")
        found[part] = _dtype(name, text)
    return Precision.model_validate(found)


def _dtype(name: str, text: str) -> Dtype:
    name = name.strip()
    if name not in DTYPES:
        raise UserError(
            f"--precision {text}: {name!r} is not known; give {', '.join(DTYPES)}, or one for each part, "
            "as in trunk=fp32,heads=int8"
        )
    return name


def reduce_file(source: Path, target: Path, dtype: Dtype, *, thorough: bool) -> None:
    """Convert an fp32 file to a reduced dtype, with the same inputs and outputs in fp32.

    Args:
        source: The fp32 file.
        target: The file to write.
        dtype: The dtype in which to compute.
        thorough: Whether int8 quantises hidden states in two steps, as the trunk needs; see `quantize_file`.

    Raises:
        ExportError: The result is no valid ONNX file, or nothing in the source can be quantised.
    """
    if dtype == "bf16":
        model = onnx.load(source)
        ask_for_bf16(model)
        onnx.save(model, target)
    elif dtype == "int8":
        quantize_file(source, target, thorough=thorough)
    elif dtype == "fp16":
        halve_file(source, target)
    else:
        raise ValueError("files are converted from fp32, not to it")


def halve_file(source: Path, target: Path) -> None:
    """Convert a file to fp16, for GPUs. It also runs on a CPU, slowly.

    Inputs and outputs stay fp32, so that parts of any precision fit together.

    Args:
        source: The fp32 file.
        target: The file to write.

    Raises:
        ExportError: The result is no valid ONNX file.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    scaling = _cut_scaling(model.graph)
    # The converter warns that it clips the masks' large negative number to -1e4, for which softmax gives 0 as well.
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPERATORS],
            disable_shape_infer=False,
        )
    _append_scaling(model.graph, scaling)
    # The converter puts its casts at the end of the list of nodes.
    _sort(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{source.name}: in fp16, it is no valid ONNX: {error}") from error
    onnx.save(model, target)


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node after those whose outputs it, or the body of its loop, reads."""
    nodes = list(graph.node)
    producers = {name: place for place, node in enumerate(nodes) for name in node.output}
    reads = {place: {producers[n] for n in names_read(node) if n in producers} for place, node in enumerate(nodes)}
    order = TopologicalSorter(reads).static_order()
    del graph.node[:]
    graph.node.extend(nodes[place] for place in order)


def _cut_scaling(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Cut off the nodes that scale an output from 0..1 to its task's range, which fp16 may be unable to represent.

    Returns:
        The nodes in order, their constants, and the outputs that they compute. The graph's outputs become their inputs.
    """
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    scaling = onnx.GraphProto()
    for output in graph.output:
        nodes: list[onnx.NodeProto] = []
        while (node := producers.get(output.name)) is not None and node.op_type in ("Add", "Mul"):
            values = [name for name in node.input if name not in constants]
            if len(values) != 1:
                break
            for name in set(node.input) - set(values):
                scaling.initializer.add().CopyFrom(constants[name])
                scaling.initializer[-1].name = name
            nodes.insert(0, node)
            output.name = values[0]
        scaling.node.extend(nodes)
        scaling.output.add().name = nodes[-1].output[0] if nodes else output.name
        for node in nodes:
            graph.node.remove(node)
    _drop_unused(graph, {tensor.name for tensor in scaling.initializer})
    return scaling


def _append_scaling(graph: onnx.GraphProto, scaling: onnx.GraphProto) -> None:
    """Append, in fp32, what `_cut_scaling` cut off."""
    graph.node.extend(scaling.node)
    graph.initializer.extend(scaling.initializer)
    for output, original in zip(graph.output, scaling.output, strict=True):
        output.name = original.name


def _drop_unused(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove those of the constants that no node reads, and the shape information of tensors that are outputs."""
    names = names - {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in names]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        graph.initializer.remove(tensor)
    outputs = {output.name for output in graph.output}
    for value in [value for value in graph.value_info if value.name in outputs]:
        graph.value_info.remove(value)
