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
        factors = self._all_factors(tensor)
        sources = [source for factor in factors if (source := self._source_of_erf(factor)) is not None]
        constants = [factor for factor in factors if factor in self.constants]
        if len(factors) != 3 or len(sources) != 1 or len(constants) != 1:
            return False
        half = self.constants[constants[0]]
        return half.size == 1 and float(half.reshape(())) == 0.5 and sources[0] in factors

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

    def _all_factors(self, tensor: str) -> list[str]:
        """Return the factors of a product, and of the products in it."""
        node = self.producers.get(tensor)
        if node is None or node.op_type != "Mul":
            return [tensor]
        return [factor for name in node.input for factor in self._all_factors(name)]

    def _source_of_erf(self, tensor: str) -> str | None:
        """Return x where a tensor is 1 + erf(x / sqrt 2), or None."""
        node = self.producers.get(tensor)
        erf = [name for name in node.input if self._op(name) == "Erf"] if node is not None else []
        if node is None or node.op_type != "Add" or not erf:
            return None
        scaled = self.producers.get(self.producers[erf[0]].input[0])
        if scaled is None or scaled.op_type not in ("Div", "Mul"):
            return None
        return next((name for name in scaled.input if name not in self.constants), None)
