"""In which numbers trunk and heads compute: the value behind ``--precision``. Known without torch."""

from __future__ import annotations

from pathlib import Path
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import DTYPES, Dtype, Precision
import logging
import os
import warnings
from collections.abc import Iterator
from graphlib import TopologicalSorter


_PARTS = ("trunk", "heads")


def parse_precision(text: str) -> Precision:
    """Reads ``int8``, which is all parts, or one for each part, as in ``trunk=fp32,heads=int8``.

    A part that is not named stays fp32.

    Raises:
        UserError: it is neither.
    """
    if "=" not in text:
        return Precision(trunk=_dtype(text, text), heads=_dtype(text, text))
    found: dict[str, Dtype] = {}
    for item in text.split(","):
        part, _, name = (piece.strip() for piece in item.partition("="))
        if part not in _PARTS or part in found:
            wrong = f"{part!r} twice" if part in found else f"{part!r} is no part"
            raise UserError(f"--precision {text}: {wrong}; parts are trunk and heads, as in trunk=fp32,heads=int8")
        found[part] = _dtype(name, text)
    return Precision.model_validate(found)


def _dtype(name: str, text: str) -> Dtype:
    name = name.strip()
    if name not in DTYPES:
        raise UserError(
            f"--precision {text}: {name!r} is not known; give {', '.join(DTYPES)}, or one a part, "
            "as in trunk=fp32,heads=int8"
        )
    return name


def reduce_file(source: Path, target: Path, dtype: Dtype, *, thorough: bool) -> None:
    """Makes of an fp32 file one that computes in other numbers, with the same inputs and outputs.

    Args:
        source: the fp32 file.
        target: where to.
        dtype: what to compute in.
        thorough: with int8, take products on states in two steps, which is what the trunk needs: see quantization.

    Raises:
        ExportError: the file would not be a valid one.
    """
    # Imported here: who only parses an option needs no ONNX.
    if dtype == "int8":
        from onetrunk.export.quantization import quantize_file

        quantize_file(source, target, thorough=thorough)
    elif dtype == "fp16":
        from onetrunk.export.precision import halve_file

        halve_file(source, target)
    else:
        raise ValueError("fp32 is what files are made from")


# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx

from onetrunk.export.onnx_file import ExportError

# Sums over many values, and powers of e: what fp16 has too few bits and too small a range for.
_FP32 = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")


def halve_file(source: Path, target: Path) -> None:
    """Makes a file compute in fp16. Inputs and outputs stay FP32, so that parts of any precision fit each other.

    Args:
        source: the fp32 file.
        target: where to.

    Raises:
        ExportError: the result is no valid ONNX.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    scaling = _take_scaling(model.graph)
    # The masks' very negative number becomes the most negative one that the converter allows, -1e4: e^-1e4 is 0 too.
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32], disable_shape_infer=False
        )
    _put_scaling(model.graph, scaling)
    # The converter puts its casts at the end of the list of nodes.
    _sort(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{source.name}: in fp16, it is no valid ONNX: {error}") from error
    onnx.save(model, target)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts each node behind those whose values it reads, or a graph within it does, as the body of a loop."""
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    reads = {place: {makers[name] for name in _reads(node) if name in makers} for place, node in enumerate(nodes)}
    order = TopologicalSorter(reads).static_order()
    del graph.node[:]
    graph.node.extend(nodes[place] for place in order)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from (output.name for output in attribute.g.output)
            for inner in attribute.g.node:
                yield from _reads(inner)


def _take_scaling(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Cuts off what brings an output from 0..1 to its task's range: fp16 may have no numbers so great, or so near.

    Gives the nodes in their order, and their constants. The graph's output is then what they read.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    taken = onnx.GraphProto()
    for output in graph.output:
        nodes: list[onnx.NodeProto] = []
        while (node := makers.get(output.name)) is not None and node.op_type in ("Add", "Mul"):
            values = [name for name in node.input if name not in constants]
            if len(values) != 1:
                break
            for name in set(node.input) - set(values):
                taken.initializer.add().CopyFrom(constants[name])
                taken.initializer[-1].name = name
            nodes.insert(0, node)
            output.name = values[0]
        taken.node.extend(nodes)
        taken.output.add().name = nodes[-1].output[0] if nodes else output.name
        for node in nodes:
            graph.node.remove(node)
    _drop_unused(graph, {tensor.name for tensor in taken.initializer})
    return taken


def _put_scaling(graph: onnx.GraphProto, taken: onnx.GraphProto) -> None:
    """Puts it back, behind what computes in fp16."""
    graph.node.extend(taken.node)
    graph.initializer.extend(taken.initializer)
    for output, before in zip(graph.output, taken.output, strict=True):
        output.name = before.name


def _drop_unused(graph: onnx.GraphProto, names: set[str]) -> None:
    """Removes constants that no node reads any more, and what is said of values that are outputs now."""
    names = names - {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in names]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        graph.initializer.remove(tensor)
    outputs = {output.name for output in graph.output}
    for value in [value for value in graph.value_info if value.name in outputs]:
        graph.value_info.remove(value)
