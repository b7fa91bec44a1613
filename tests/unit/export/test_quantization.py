"""int8 files: close to fp32, the same form, and each token by itself."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onetrunk.export.chain import open_session
from onetrunk.export.errors import ExportError
from onetrunk.export.graph_view import GraphView
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.quantization import quantize_file
from onetrunk.export.release import IR_VERSION, get_release
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.names import Segment

RELEASE = get_release("24.10")
MASK = np.ones((3, 9), dtype=np.int64)


@pytest.fixture
def states():
    """States in which one token has a feature that is ten times all others. *Shape:* (3, 9, 32)"""
    state = np.random.default_rng(0).normal(size=(3, 9, 32)).astype(np.float32)
    state[:, 4, 7] = 40.0
    return state


@pytest.fixture
def segment(tiny_trunk, tmp_path):
    path = tmp_path / "segment.onnx"
    export_segment(tiny_trunk, Segment(1, 3), path, RELEASE)
    return path


def run_segment(path, state):
    return open_session(path, "segment").run(None, {"hidden_01": state, "attention_mask": MASK[: len(state)]})[0]


def error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.usefixtures("exact_integer_sums")
@pytest.mark.parametrize("thorough", [False, True])
def test_segment_answers_nearly_the_same(segment, states, tmp_path, thorough):
    quantize_file(segment, tmp_path / "int8.onnx", thorough=thorough)
    found = run_segment(tmp_path / "int8.onnx", states)
    assert found.dtype == np.float32
    assert 0 < error(found, run_segment(segment, states)) < 0.05


@pytest.mark.usefixtures("exact_integer_sums")
def test_second_step_is_closer(segment, states, tmp_path):
    errors = []
    for thorough in (False, True):
        quantize_file(segment, tmp_path / "int8.onnx", thorough=thorough)
        errors.append(error(run_segment(tmp_path / "int8.onnx", states), run_segment(segment, states)))
    assert errors[1] < errors[0]


def test_text_is_answered_the_same_whatever_stands_beside_it(segment, states, tmp_path):
    quantize_file(segment, tmp_path / "int8.onnx", thorough=True)
    loud = states.copy()
    loud[1:] *= 50
    alone = run_segment(tmp_path / "int8.onnx", states[:1])
    beside = run_segment(tmp_path / "int8.onnx", loud)[:1]
    np.testing.assert_allclose(beside, alone, atol=1e-3)


def test_padding_of_noughts_gives_numbers(segment, states, tmp_path):
    quantize_file(segment, tmp_path / "int8.onnx", thorough=True)
    assert np.isfinite(run_segment(tmp_path / "int8.onnx", states * 0)).all()


@pytest.mark.usefixtures("exact_integer_sums")
def test_head_answers_nearly_the_same(tiny_trunk, mood_bundle, states, tmp_path):
    export_head(mood_bundle.head(tiny_trunk), mood_bundle.spec, tmp_path / "mood.onnx", RELEASE)
    quantize_file(tmp_path / "mood.onnx", tmp_path / "int8.onnx", thorough=False)
    feeds = {"hidden_state": states, "attention_mask": MASK}
    wanted, found = (open_session(tmp_path / f"{name}.onnx", name).run(None, feeds)[0] for name in ("mood", "int8"))
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_token_segment_keeps_its_embeddings_and_its_form(tiny_trunk, tmp_path):
    export_segment(tiny_trunk, Segment(0, 1), tmp_path / "low.onnx", RELEASE)
    quantize_file(tmp_path / "low.onnx", tmp_path / "int8.onnx", thorough=True)
    before, after = onnx.load(tmp_path / "low.onnx"), onnx.load(tmp_path / "int8.onnx")
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.ir_version == IR_VERSION
    types = {numpy_helper.to_array(tensor).dtype for tensor in after.graph.initializer if len(tensor.dims) == 2}
    assert types == {np.dtype("float32"), np.dtype("int8")}
    words = tiny_trunk.encoder.embeddings.word_embeddings.weight
    assert any(
        tuple(tensor.dims) == tuple(words.shape)
        and torch.equal(torch.from_numpy(numpy_helper.to_array(tensor).copy()), words)
        for tensor in after.graph.initializer
    )


def test_all_layers_are_quantised_but_the_output(tiny_trunk, tiny_heads, tmp_path):
    bundle = load_bundle(tiny_heads / "match")  # two layers
    export_head(bundle.head(tiny_trunk), bundle.spec, tmp_path / "match.onnx", RELEASE)
    quantize_file(tmp_path / "match.onnx", tmp_path / "int8.onnx", thorough=False)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    # Six of the whole layer, four of the folded one: its keys and values are one matrix an attention head.
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) == 10
    assert sum(node.op_type == "Gemm" for node in nodes) == 1


def test_same_file_twice_is_the_same(segment, tmp_path):
    for name in ("one", "two"):
        quantize_file(segment, tmp_path / name, thorough=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_embeddings_alone_are_refused(tiny_trunk, tmp_path):
    export_segment(tiny_trunk, Segment(0, 0), tmp_path / "embeddings.onnx", RELEASE)
    with pytest.raises(ExportError, match="no product that can be quantised"):
        quantize_file(tmp_path / "embeddings.onnx", tmp_path / "int8.onnx", thorough=True)


@pytest.mark.parametrize(
    ("factors", "is_gelu"),
    [
        (("x", "half", "sum"), True),
        (("sum", "x", "half"), True),
        (("half", "sum", "gate"), False),
        (("x", "two", "sum"), False),
        (("x", "half", "sum", "gate"), False),
    ],
)
def test_a_gelu_times_something_else_is_none(factors, is_gelu):
    """It may have any values, and those of a GELU are never below -0.17."""
    node = onnx.helper.make_node
    nodes = [
        node("Div", ["x", "root"], ["scaled"]),
        node("Erf", ["scaled"], ["erf"]),
        node("Add", ["erf", "one"], ["sum"]),
    ]
    product = factors[0]
    for number, factor in enumerate(factors[1:]):
        nodes.append(node("Mul", [product, factor], [f"product{number}"]))
        product = f"product{number}"
    values = {"root": 2**0.5, "one": 1.0, "half": 0.5, "two": 2.0}
    constants = [
        onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name) for name, value in values.items()
    ]
    given = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "gate")]
    made = [onnx.helper.make_tensor_value_info(product, onnx.TensorProto.FLOAT, [1, 4])]
    view = GraphView(onnx.helper.make_graph(nodes, "graph", given, made, constants))
    assert view.is_gelu(product) is is_gelu
