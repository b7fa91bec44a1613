"""Queries on an ONNX graph: the producer, the readers and the role of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

# Operators between a product and a softmax: the scores, their scale and their mask.
_BEFORE_SOFTMAX = {"Add", "Div", "Identity", "MatMul", "Mul", "Reshape", "Transpose"}


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads: its inputs, and what the body of a loop or branch reads from outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {given.name for given in graph.input} | {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                yield from (name for name in names_read(inner) if name not in inside)
                inside.update(inner.output)
            yield from (given.name for given in graph.output if given.name not in inside)


class GraphView:
    """A view of an ONNX graph. It does not follow later changes of the graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph

    @cached_property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Name -> value, for initializers, constants and identities of these."""
        found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self._graph.initializer}
        for node in self._graph.node:  # topological order: producers come first
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Identity" and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
        return found

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """Tensor -> the node that produces it."""
        return {name: node for node in self._graph.node for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Tensor -> the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in names_read(node):
                found.setdefault(name, []).append(node)
        return found

    def weight(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        """Return the constant matrix by which a node multiplies, or None if the node is no such product.

        *Shape:* (inputs, outputs).
        """
        if node.op_type not in ("MatMul", "Gemm"):
            return None
        matrix = self.constants.get(node.input[1])
        if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
            return None
        settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if settings.get("transA") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
            return None
        return matrix.T if settings.get("transB") else matrix

    def is_gelu(self, tensor: str) -> bool:
        """Return whether a tensor is the output of a GELU, and so never below -0.17."""
        # Exporters write 0.5 * (x * (1 + erf(x / sqrt 2))), with the factors in any order.
        return any(
            sum_.op_type == "Add" and any(self._op(name) == "Erf" for name in sum_.input)
            for half in self._factors(tensor)
            for inner in self._factors(half)
            for sum_ in [self.producers.get(inner)]
            if sum_ is not None
        )

    def is_state(self, tensor: str) -> bool:
        """Return whether a tensor is a hidden state, which is normalised except for a few features of large values."""
        return self._op(tensor) == "LayerNormalization" or any(tensor == given.name for given in self._graph.input)

    def feeds_softmax(self, node: onnx.NodeProto) -> bool:
        """Return whether a product's result reaches a softmax before it is multiplied by another constant matrix."""
        todo, seen = list(node.output), set(node.output)
        while todo:
            for reader in self.readers.get(todo.pop(), ()):
                if reader.op_type == "Softmax":
                    return True
                if reader.op_type in _BEFORE_SOFTMAX and self.weight(reader) is None:
                    todo += [name for name in reader.output if name not in seen]
                    seen.update(reader.output)
        return False

    def _op(self, tensor: str) -> str:
        node = self.producers.get(tensor)
        return "" if node is None else node.op_type

    def _factors(self, tensor: str) -> list[str]:
        node = self.producers.get(tensor)
        return list(node.input) if node is not None and node.op_type == "Mul" else []
