"""From an fp32 ONNX file to one that computes in 16-bit floats, for GPUs. It runs on a CPU too, slowly."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

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
