"""fp16 files: close to fp32, FP32 in and out, normalisation and softmax in fp32."""

import numpy as np
import onnx
import pytest
import torch

from onetrunk.export.chain import open_session
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.precision import halve_file
from onetrunk.export.release import IR_VERSION, get_release
from onetrunk.nn.head import new_head
from onetrunk.protocol.names import Segment
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

RELEASE = get_release("24.10")


@pytest.fixture
def feeds():
    mask = np.ones((3, 9), dtype=np.int64)
    mask[1:, 5:] = 0
    return np.random.default_rng(0).normal(size=(3, 9, 32)).astype(np.float32), mask


def check_form(path):
    """Normalisation and softmax read and give FP32: what they give is cast before a product reads it."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.ir_version == IR_VERSION
    given = {tensor.name: tensor.type.tensor_type.elem_type for tensor in [*model.graph.input, *model.graph.output]}
    assert onnx.TensorProto.FLOAT16 not in given.values()
    casts = {name for node in model.graph.node if node.op_type == "Cast" for name in node.output}
    blocked = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert blocked
    assert all(node.input[0] in casts for node in blocked)


def test_head_answers_nearly_the_same(tiny_trunk, mood_bundle, feeds, tmp_path):
    export_head(mood_bundle.head(tiny_trunk), mood_bundle.spec, tmp_path / "mood.onnx", RELEASE)
    halve_file(tmp_path / "mood.onnx", tmp_path / "fp16.onnx")
    check_form(tmp_path / "fp16.onnx")
    named = dict(zip(("hidden_state", "attention_mask"), feeds, strict=True))
    wanted, found = (open_session(tmp_path / f"{name}.onnx", name).run(None, named)[0] for name in ("mood", "fp16"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=5e-3)


@pytest.mark.parametrize("bounds", [(0.0, 5.0), (-1e5, 1e5), (60_000.0, 60_100.0), (0.0, 1e-6)])
def test_a_number_keeps_its_range(tiny_trunk, feeds, tmp_path, bounds):
    """fp16 ends at 65,504, has steps of 32 before that, and none below 1e-7."""
    spec = HeadSpec(
        task="price", kind="regression", form="single", range=bounds, tap=2, layers=1, trunk=tiny_trunk.identity,
        width=tiny_trunk.width, max_length=32, metric="pearson", scores={}, created="2026-01-01", onetrunk_version="0",
    )  # fmt: skip
    head = new_head(tiny_trunk, outputs=1, tap=2, layers=1)
    torch.nn.init.normal_(head.output.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    export_head(head, spec, tmp_path / "price.onnx", RELEASE)
    halve_file(tmp_path / "price.onnx", tmp_path / "fp16.onnx")
    named = dict(zip(("hidden_state", "attention_mask"), feeds, strict=True))
    wanted, found = (open_session(tmp_path / f"{name}.onnx", name).run(None, named)[0] for name in ("price", "fp16"))
    assert np.ptp(wanted) > 0.05 * (bounds[1] - bounds[0])
    assert get_kind("regression").answers.difference(found, wanted, spec) < 5e-3


def test_segment_answers_nearly_the_same_and_is_half_as_large(tiny_trunk, feeds, tmp_path):
    export_segment(tiny_trunk, Segment(1, 3), tmp_path / "fp32.onnx", RELEASE)
    halve_file(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    check_form(tmp_path / "fp16.onnx")
    named = dict(zip(("hidden_01", "attention_mask"), feeds, strict=True))
    wanted, found = (open_session(tmp_path / f"{name}.onnx", name).run(None, named)[0] for name in ("fp32", "fp16"))
    np.testing.assert_allclose(found, wanted, atol=0.05)
    before, after = (
        sum(len(tensor.raw_data) for tensor in onnx.load(tmp_path / f"{name}.onnx").graph.initializer)
        for name in ("fp32", "fp16")
    )
    assert after < 0.6 * before
