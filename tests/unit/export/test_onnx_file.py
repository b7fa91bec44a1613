"""Exported files: names, dynamic axes, IR and operator set that the Triton release can load."""

import onnx
import pytest

from onetrunk.export.errors import ExportError
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.release import RELEASES, Release, get_release
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import Segment, cut_trunk

RELEASE = get_release("24.10")


def dims(tensor):
    return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


@pytest.mark.parametrize("segment", [Segment(0, 0), Segment(0, 2), Segment(2, 4)])
def test_segment_file(tiny_trunk, tmp_path, segment):
    path = tmp_path / "model.onnx"
    export_segment(tiny_trunk, segment, path, RELEASE)
    model = onnx.load(path)
    assert model.ir_version == 8
    assert {entry.version for entry in model.opset_import} == {17}
    assert {tensor.name for tensor in model.graph.input} == set(segment.inputs(token_types=True))
    assert all(dims(tensor)[:2] == ["batch", "tokens"] for tensor in model.graph.input)
    assert [(tensor.name, dims(tensor)) for tensor in model.graph.output] == [
        (segment.output, ["batch", "tokens", tiny_trunk.width])
    ]


@pytest.mark.parametrize(("task", "outputs"), [("grade", 1), ("match", 2), ("topic", 3)])
def test_head_file(tiny_heads, tiny_trunk, tmp_path, task, outputs):
    bundle = load_bundle(tiny_heads / task)
    path = tmp_path / "model.onnx"
    export_head(bundle.head(tiny_trunk), bundle.spec, path, RELEASE)
    model = onnx.load(path)
    assert [(tensor.name, dims(tensor)) for tensor in model.graph.output] == [(task, ["batch", outputs])]
    assert {tensor.name for tensor in model.graph.input} == {"hidden_state", "attention_mask"}


def test_folded_head_has_no_product_of_all_tokens_with_a_weight(mood_bundle, tiny_trunk, tmp_path):
    """The point of the fold: the matrices of the last layer meet one vector a text, never every token."""
    path = tmp_path / "model.onnx"
    export_head(mood_bundle.head(tiny_trunk), mood_bundle.spec, path, RELEASE)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    # A learned query's vector meets them all, at the price of one more score.
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert matrices
    known = {tensor.name: dims(tensor) for tensor in [*model.graph.value_info, *model.graph.input]}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and matrices & set(node.input):
            other = next(name for name in node.input if name not in matrices)
            assert "tokens" not in known.get(other, []), f"{node.name} multiplies every token with a weight"


def test_release_that_cannot_load_the_file_is_refused(tiny_trunk, tmp_path):
    old = Release("22.01", "1.10.0", max_ir=8, max_opset=15)
    with pytest.raises(ExportError, match=r"opset 17, but Triton 22.01 reads IR 8 and opset 15 at most"):
        export_segment(tiny_trunk, Segment(0, 1), tmp_path / "model.onnx", old)


def test_unknown_release_names_the_known_ones():
    with pytest.raises(UserError, match=r"'24.1' is not known; known are: 24\.10, 24\.11"):
        get_release("24.1")
    assert all(release.name == name for name, release in RELEASES.items())


def test_cuts():
    names = [segment.name for segment in cut_trunk({4, 3, 7})]
    assert names == ["trunk_00_03", "trunk_03_04", "trunk_04_07"]
    with_embeddings = cut_trunk({0, 3})
    assert [segment.name for segment in with_embeddings] == ["trunk_00_00", "trunk_00_03"]
    assert all(segment.reads_tokens for segment in with_embeddings)
    assert cut_trunk({3, 4})[1].inputs(token_types=True) == ("hidden_03", "attention_mask")
