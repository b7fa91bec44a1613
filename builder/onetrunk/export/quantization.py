"""From an fp32 ONNX file to one whose products with constant matrices are products of 8-bit integers, for CPUs.

Weights are quantised once, symmetrically, each output with a scale of its own. What is multiplied with them is
quantised while the model runs, each token with a scale of its own, its greatest absolute value:

    y = (round(127 x / r) . W8) * r * s / 127        r: of the token, s: of the output

ONNX Runtime's own quantize_dynamic takes one scale for a whole batch. In a BERT one token in a hundred has a feature
ten times as large as all others, which then rules the precision of all, of the texts batched beside it too.

A quantised token has a second step where that pays: what rounding left over is quantised and multiplied as well, so
that all that is lost is what rounding the weights loses. Where it pays:
- where there is one row a text, as in a head's folded layer: time goes into reading the weights, which are read once;
- of the trunk, where a state goes into the values of the attention or into the feed-forward part: states have features
  that stand out, all heads depend on the trunk, and it is the smaller part of the work.

All else stays fp32: embeddings, normalisation, attention itself, the fold's products of one matrix an attention head
(ONNX Runtime does not lay these out for integers beforehand, so nothing is won), and matrices too small to matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onetrunk.export.graph_view import GraphView, names_read
from onetrunk.export.onnx_file import ExportError

# In ONNX Runtime's own operators since 1.4, on the CPU: a product of integers, scaled to floats in the same pass.
_DOMAIN = "com.microsoft"

# A matrix of fewer outputs, as a head's last, is read in no time, and the nodes around an integer product cost more.
_FEWEST_OUTPUTS = 16

_HIGHEST = 127
# A GELU is never below -0.17: with zero at 32 of 255 and a scale of at least 1.25 / 223 that still has its place.
_GELU_ZERO, _GELU_FLOOR = 32, 1.25
# Half of a step is what rounding leaves over at most; the second step has that as its greatest value.
_SECOND = 2 * _HIGHEST


def quantize_file(source: Path, target: Path, *, thorough: bool) -> None:
    """Quantises a file.

    Args:
        source: the fp32 file.
        target: where to.
        thorough: take the second step for states too, as the trunk needs.

    Raises:
        ExportError: nothing in it can be quantised, or the result is no valid ONNX.
    """
    model = onnx.load(source)
    rewriting = _Rewriting(model.graph, thorough)
    if not rewriting.run():
        raise ExportError(f"{source.name}: no product in it that can be quantised: keep it in fp32")
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{source.name}: quantised, it is no valid ONNX: {error}") from error
    onnx.save(model, target)


class _Rewriting:
    """One graph, while its products are replaced."""

    def __init__(self, graph: onnx.GraphProto, thorough: bool) -> None:
        self._graph, self._view, self._thorough = graph, GraphView(graph), thorough
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()

    def run(self) -> int:
        """Replaces all products that it pays for; gives their number."""
        count = 0
        for node in self._graph.node:
            matrix = self._view.weight(node)
            if matrix is None or matrix.shape[1] < _FEWEST_OUTPUTS:
                self._nodes.append(node)
            else:
                self._replace(node, matrix)
                count += 1
        self._finish()
        return count

    def _replace(self, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> None:
        given, result = node.input[0], node.output[0]
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        weights = self._weights(node, matrix)
        gelu = self._view.is_gelu(given)
        first, scale, zero = self._first_step(given, gelu)
        one_row_a_text = node.op_type == "Gemm"
        twice = not gelu and (one_row_a_text or (self._thorough and self._needs_second(node)))
        scaled = f"{result}_of_unit"
        if not twice:
            self._product(first, scale, zero, weights, scaled)
        elif one_row_a_text:
            self._joint_product(given, weights, scaled)
        else:
            self._product(first, scale, zero, weights, f"{result}_first")
            second = self._second_step(given)
            self._product(second, self._second_scale, zero, weights, f"{result}_rest")
            self._add("Add", [f"{result}_first", f"{result}_rest"], scaled)
        unbiased = result if bias is None else f"{result}_unbiased"
        self._add("Mul", [scaled, f"{given}_row_scale"], unbiased)
        if bias is not None:
            self._add("Add", [unbiased, bias], result)

    def _needs_second(self, node: onnx.NodeProto) -> bool:
        # A softmax forgives; what goes through the values and the feed-forward part adds up, layer for layer.
        return self._view.is_state(node.input[0]) and not self._view.feeds_softmax(node)

    def _weights(self, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> tuple[str, str]:
        """The names of the integers, *Shape:* (inputs, outputs), and of their scales, *Shape:* (outputs,)."""
        scales = np.maximum(np.abs(matrix).max(axis=0) / _HIGHEST, np.finfo(np.float32).tiny).astype(np.float32)
        integers = np.clip(np.rint(matrix / scales), -_HIGHEST, _HIGHEST).astype(np.int8)
        # By the product's name: two products may read one matrix in two ways.
        return self._constant(f"{node.output[0]}_w8", integers), self._constant(f"{node.output[0]}_w_scale", scales)

    def _first_step(self, given: str, gelu: bool) -> tuple[str, str, str]:
        """Names of a tensor's integers, their scale and their zero. Made once, however many products read them."""
        zero = self._constant("int8_gelu_zero" if gelu else "int8_zero", np.uint8(_GELU_ZERO if gelu else 128))
        scale = self._number("gelu" if gelu else "first", 1 / (255 - _GELU_ZERO if gelu else _HIGHEST))
        first = f"{given}_first"
        if self._begins(first):
            rows = given if gelu else self._add("Abs", [given], f"{given}_abs")
            highest = self._add("ReduceMax", [rows], f"{given}_highest", axes=[-1], keepdims=1)
            # All zeros have to be divided by something too.
            floor = self._number("gelu_floor", _GELU_FLOOR) if gelu else self._number("floor", 1e-6)
            self._add("Max", [highest, floor], f"{given}_row_scale")
            unit = self._add("Div", [given, f"{given}_row_scale"], f"{given}_unit")
            self._add("QuantizeLinear", [unit, scale, zero], first)
        return first, scale, zero

    def _second_step(self, given: str) -> str:
        """The name of the integers of what the first step left over."""
        second = f"{given}_second"
        if self._begins(second):
            scale, zero = self._number("first", 1 / _HIGHEST), "int8_zero"
            told = self._add("DequantizeLinear", [f"{given}_first", scale, zero], f"{given}_told")
            rest = self._add("Sub", [f"{given}_unit", told], f"{given}_rest")
            self._add("QuantizeLinear", [rest, self._second_scale, zero], second)
        return second

    def _joint_product(self, given: str, weights: tuple[str, str], result: str) -> None:
        """Both steps as rows of one product, so that the weights are read once."""
        both = f"{given}_both"
        second = self._second_step(given)
        if self._begins(both):
            self._add("Concat", [f"{given}_first", second], both, axis=0)
        self._product(both, self._number("first", 1 / _HIGHEST), "int8_zero", weights, f"{result}_both")
        halves = [f"{result}_of_first", f"{result}_of_second"]
        self._nodes.append(onnx.helper.make_node("Split", [f"{result}_both"], halves, name=f"{result}_halves", axis=0))
        rest = self._add("Mul", [halves[1], self._number("share", 1 / _SECOND)], f"{result}_rest")
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
        """Whether something is to be made that has not been made yet."""
        new = name not in self._made
        self._made.add(name)
        return new

    @property
    def _second_scale(self) -> str:
        return self._number("second", 1 / _HIGHEST / _SECOND)

    def _number(self, name: str, value: float) -> str:
        return self._constant(f"int8_{name}", np.float32(value))

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._constants:
            self._constants[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def _finish(self) -> None:
        """Puts the new nodes in the place of the old ones, and takes out the weights that nothing reads any more."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in names_read(node)} | {
            given.name for given in self._graph.output
        }
        stay = [tensor for tensor in self._graph.initializer if tensor.name in read]
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stay]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *(tensor for name, tensor in self._constants.items() if name in read)])
