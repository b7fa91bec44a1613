"""Quantisation of an fp32 ONNX file: products with constant matrices become products of 8-bit integers, for CPUs.

Weights are quantised once, symmetrically, with one scale per output. Activations are quantised while the model runs,
with one scale per token, its greatest absolute value:

    y = (round(127 x / r) . W8) * r * s / 127        r: of the token, s: of the output

ONNX Runtime's own quantize_dynamic takes one scale for a whole batch. In a BERT, one token in a hundred has a feature
ten times as large as all others, which would then limit the precision of the whole batch.

Where it pays, a token is quantised in two steps: the remainder of the first rounding is quantised and multiplied too,
so that the only loss is that of rounding the weights. It pays:
- for products with one row per text, as in a head's folded layer: the time goes into reading the weights, and they are
  read once for both steps;
- in the trunk, for hidden states that go into the values of the attention or into the feed-forward layer: states have
  features of large values, all heads depend on the trunk, and these products are the smaller part of its work.

Everything else stays fp32: embeddings, normalisation, attention itself, the fold's products with one matrix per
attention head (ONNX Runtime does not prepack these for integers, so nothing is gained), and matrices too small to
matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onetrunk.export.errors import ExportError
from onetrunk.export.graph_view import GraphView, names_read

# The domain of MatMulIntegerToFloat, a product of integers that is scaled to floats in the same pass. ONNX Runtime has
# it on the CPU since 1.4.
_DOMAIN = "com.microsoft"

# For a matrix with fewer outputs, such as a head's last, the nodes around an integer product cost more than it saves.
_MIN_OUTPUTS = 16

_HIGHEST = 127
# A GELU is never below -0.17, which a zero point of 32 and a scale of at least 1.25 / 223 can represent.
_GELU_ZERO, _GELU_FLOOR = 32, 1.25
# The remainder of rounding is at most half a step, which is the greatest value of the second step.
_SECOND_STEP = 2 * _HIGHEST


def quantize_file(source: Path, target: Path, *, thorough: bool) -> None:
    """Quantise a file.

    Args:
        source: The fp32 file.
        target: The file to write.
        thorough: Whether hidden states are quantised in two steps too, as the trunk needs.

    Raises:
        ExportError: Nothing in the file can be quantised, or the result is no valid ONNX file.
    """
    model = onnx.load(source)
    if not _GraphQuantizer(model.graph, thorough).run():
        raise ExportError(f"{source.name}: it has no product that can be quantised: keep it in fp32")
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{source.name}: quantised, it is no valid ONNX: {error}") from error
    onnx.save(model, target)


class _GraphQuantizer:
    """The replacement of one graph's products, in place."""

    def __init__(self, graph: onnx.GraphProto, thorough: bool) -> None:
        self._graph, self._view, self._thorough = graph, GraphView(graph), thorough
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._begun: set[str] = set()

    def run(self) -> int:
        """Replace all products for which it pays, and return their number."""
        count = 0
        for node in self._graph.node:
            matrix = self._view.weight(node)
            if matrix is None or matrix.shape[1] < _MIN_OUTPUTS:
                self._nodes.append(node)
            else:
                self._replace(node, matrix)
                count += 1
        self._finish()
        return count

    def _replace(self, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> None:
        source, result = node.input[0], node.output[0]
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        weights = self._weights(node, matrix)
        gelu = self._view.is_gelu(source)
        first, scale, zero = self._first_step(source, gelu)
        one_row_per_text = node.op_type == "Gemm"
        twice = not gelu and (one_row_per_text or (self._thorough and self._needs_second(node)))
        scaled = f"{result}_of_unit"
        if not twice:
            self._product(first, scale, zero, weights, scaled)
        elif one_row_per_text:
            self._joint_product(source, weights, scaled)
        else:
            self._product(first, scale, zero, weights, f"{result}_first")
            second = self._second_step(source)
            self._product(second, self._second_scale, zero, weights, f"{result}_rest")
            self._add("Add", [f"{result}_first", f"{result}_rest"], scaled)
        unbiased = result if bias is None else f"{result}_unbiased"
        self._add("Mul", [scaled, f"{source}_row_scale"], unbiased)
        if bias is not None:
            self._add("Add", [unbiased, bias], result)

    def _needs_second(self, node: onnx.NodeProto) -> bool:
        # A softmax dampens errors; those in the attention's values and the feed-forward layer add up over the layers.
        return self._view.is_state(node.input[0]) and not self._view.feeds_softmax(node)

    def _weights(self, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> tuple[str, str]:
        """Return the names of the integers, *Shape:* (inputs, outputs), and of their scales, *Shape:* (outputs,)."""
        scales = np.maximum(np.abs(matrix).max(axis=0) / _HIGHEST, np.finfo(np.float32).tiny).astype(np.float32)
        integers = np.clip(np.rint(matrix / scales), -_HIGHEST, _HIGHEST).astype(np.int8)
        # Named after the product, since two products may read one matrix in two ways.
        return self._constant(f"{node.output[0]}_w8", integers), self._constant(f"{node.output[0]}_w_scale", scales)

    def _first_step(self, given: str, gelu: bool) -> tuple[str, str, str]:
        """Return the names of a tensor's integers, their scale and their zero point. All products share them."""
        zero = self._constant("int8_gelu_zero" if gelu else "int8_zero", np.uint8(_GELU_ZERO if gelu else 128))
        scale = self._number("gelu" if gelu else "first", 1 / (255 - _GELU_ZERO if gelu else _HIGHEST))
        first = f"{given}_first"
        if self._begins(first):
            rows = given if gelu else self._add("Abs", [given], f"{given}_abs")
            highest = self._add("ReduceMax", [rows], f"{given}_highest", axes=[-1], keepdims=1)
            # The lower bound keeps a row of zeros from being divided by zero.
            floor = self._number("gelu_floor", _GELU_FLOOR) if gelu else self._number("floor", 1e-6)
            self._add("Max", [highest, floor], f"{given}_row_scale")
            unit = self._add("Div", [given, f"{given}_row_scale"], f"{given}_unit")
            self._add("QuantizeLinear", [unit, scale, zero], first)
        return first, scale, zero

    def _second_step(self, given: str) -> str:
        """Return the name of the integers of the remainder of the first step."""
        second = f"{given}_second"
        if self._begins(second):
            scale, zero = self._number("first", 1 / _HIGHEST), "int8_zero"
            approximation = self._add("DequantizeLinear", [f"{given}_first", scale, zero], f"{given}_told")
            rest = self._add("Sub", [f"{given}_unit", approximation], f"{given}_rest")
            self._add("QuantizeLinear", [rest, self._second_scale, zero], second)
        return second

    def _joint_product(self, given: str, weights: tuple[str, str], result: str) -> None:
        """Compute both steps as rows of one product, so that the weights are read once."""
        both = f"{given}_both"
        second = self._second_step(given)
        if self._begins(both):
            self._add("Concat", [f"{given}_first", second], both, axis=0)
        self._product(both, self._number("first", 1 / _HIGHEST), "int8_zero", weights, f"{result}_both")
        halves = [f"{result}_of_first", f"{result}_of_second"]
        self._nodes.append(onnx.helper.make_node("Split", [f"{result}_both"], halves, name=f"{result}_halves", axis=0))
        rest = self._add("Mul", [halves[1], self._number("share", 1 / _SECOND_STEP)], f"{result}_rest")
        self._add("Add", [halves[0], rest], result)

    def _product(self, integers: str, scale: str, zero: str, weights: tuple[str, str], result: str) -> None:
        inputs: Sequence[str] = [integers, weights[0], scale, weights[1], zero, ""]
        self._nodes.append(
            onnx.helper.make_node("MatMulIntegerToFloat", inputs, [result], name=f"{result}_product", domain=_DOMAIN)
        )

    def _add(self, operator: str, inputs: Sequence[str], result: str, **settings: Any) -> str:
        self._nodes.append(onnx.helper.make_node(operator, inputs, [result], name=f"{result}_node", **settings))
        return result

    def _begins(self, name: str) -> bool:
        """Return whether the nodes of this name have yet to be added, and note that they are being added."""
        new = name not in self._begun
        self._begun.add(name)
        return new

    @property
    def _second_scale(self) -> str:
        return self._number("second", 1 / _HIGHEST / _SECOND_STEP)

    def _number(self, name: str, value: float) -> str:
        return self._constant(f"int8_{name}", np.float32(value))

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._constants:
            self._constants[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def _finish(self) -> None:
        """Replace the graph's nodes by the new ones, and remove the weights that no node reads."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in names_read(node)} | {
            given.name for given in self._graph.output
        }
        stay = [tensor for tensor in self._graph.initializer if tensor.name in read]
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stay]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *(tensor for name, tensor in self._constants.items() if name in read)])
