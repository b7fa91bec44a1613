"""The parity check passes what is right and stops what is wrong, with the difference it found."""

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onetrunk.export import parity
from onetrunk.export.batches import parity_batches
from onetrunk.export.errors import ParityError
from onetrunk.export.onnx_file import ServedHead, export_head, export_segment
from onetrunk.export.parity import TOLERANCE, GroupFile, HeadFile, check_parity
from onetrunk.export.release import get_release
from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.protocol.names import Segment
from tests.fixtures.limbs import random_head_on, random_limb

BUCKETS = (16, 32)
RELEASE = get_release("24.10")


@pytest.fixture
def exported(tiny_heads, tiny_trunk, tmp_path):
    """The trunk up to tap 3 in two segments, and the head `mood` on it."""
    segments = export_trunk(tiny_trunk, tmp_path)
    return segments, export_mood(load_bundle(tiny_heads / "mood"), tiny_trunk, tmp_path)


def export_trunk(trunk, folder):
    segments = {Segment(0, 1): folder / "low.onnx", Segment(1, 3): folder / "high.onnx"}
    for segment, path in segments.items():
        export_segment(trunk, segment, path, RELEASE)
    return segments


def export_mood(bundle, trunk, folder):
    head = bundle.head(trunk)
    export_head(head, bundle.spec, folder / "mood.onnx", RELEASE)
    return HeadFile("head_mood", folder / "mood.onnx", bundle.spec, ServedHead(head, bundle.spec))


def test_right_files_pass(tiny_trunk, mood_bundle, tmp_path):
    segments, head = export_trunk(tiny_trunk, tmp_path), export_mood(mood_bundle, tiny_trunk, tmp_path)
    steps = []
    worst = check_parity(tiny_trunk, segments, [head], BUCKETS, lambda: steps.append(1))
    assert set(worst) == {"trunk_00_01", "trunk_01_03", "head_mood"}
    assert all(0 <= difference <= TOLERANCE for difference in worst.values())
    assert len(steps) == 2 * len(BUCKETS)


def test_head_exported_with_another_query_is_found(tiny_trunk, mood_bundle, tmp_path):
    segments = export_trunk(tiny_trunk, tmp_path)
    right = export_mood(mood_bundle, tiny_trunk, tmp_path)
    others = [query for query in ("cls", "mean") if query != mood_bundle.spec.query]
    weights = {name: tensor for name, tensor in mood_bundle.weights.items() if name != "pool"}
    for query in others:
        spec = mood_bundle.spec.model_copy(update={"query": query})
        export_mood(Bundle(mood_bundle.folder, spec, weights), tiny_trunk, tmp_path)
        with pytest.raises(ParityError, match="head_mood: answers differ"):
            check_parity(tiny_trunk, segments, [right], BUCKETS)


def change_weights(path, change):
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim:
            tensor.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize(("place", "name"), [("low", "trunk_00_01"), ("high", "trunk_01_03"), ("mood", "head_mood")])
def test_changed_weights_are_found_and_named(tiny_trunk, exported, tmp_path, place, name):
    segments, head = exported
    change_weights(tmp_path / f"{place}.onnx", lambda array: array * 1.01)
    with pytest.raises(ParityError, match=r"greatest difference \d.*allowed 1e-04; nothing was published") as raised:
        check_parity(tiny_trunk, segments, [head], BUCKETS)
    assert raised.value.model == name
    assert raised.value.difference > TOLERANCE


@pytest.mark.parametrize(("off_by", "passes"), [(9e-3, True), (1.1e-2, False)])
def test_a_number_may_be_off_by_a_share_of_its_range(tiny_trunk, tiny_heads, exported, tmp_path, off_by, passes):
    segments, _ = exported
    bundle = load_bundle(tiny_heads / "grade")
    spec = bundle.spec.model_copy(update={"range": (0.0, 100.0)})
    head = bundle.head(tiny_trunk)
    head.output.bias.data += off_by / 100
    export_head(head, spec, tmp_path / "grade.onnx", RELEASE)
    grade = HeadFile("head_grade", tmp_path / "grade.onnx", spec, ServedHead(bundle.head(tiny_trunk), spec))
    if passes:
        share = check_parity(tiny_trunk, segments, [grade], BUCKETS)["head_grade"]
        assert share == pytest.approx(off_by / 100, rel=0.1)
    else:
        with pytest.raises(ParityError, match="head_grade: answers differ from torch's"):
            check_parity(tiny_trunk, segments, [grade], BUCKETS)


@pytest.mark.parametrize("tolerance", [TOLERANCE, math.inf])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_found_whatever_is_allowed(tiny_trunk, tiny_heads, exported, tmp_path, value, tolerance):
    segments, _ = exported
    bundle = load_bundle(tiny_heads / "grade")  # a number, which no softmax keeps finite
    head = bundle.head(tiny_trunk)
    head.output.bias.data.fill_(value)
    export_head(head, bundle.spec, tmp_path / "grade.onnx", RELEASE)
    grade = HeadFile(
        "head_grade", tmp_path / "grade.onnx", bundle.spec, ServedHead(bundle.head(tiny_trunk), bundle.spec)
    )
    with pytest.raises(ParityError, match=r"^head_grade: answers NaN or infinity on "):
        check_parity(tiny_trunk, segments, [grade], BUCKETS, tolerance=tolerance)


def test_other_output_name_is_found(tiny_trunk, exported, tmp_path):
    segments, head = exported
    model = onnx.load(tmp_path / "mood.onnx")
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "mood":
                node.output[i] = "temper"
    model.graph.output[0].name = "temper"
    onnx.save(model, tmp_path / "mood.onnx")
    with pytest.raises(ParityError, match=r"outputs are \['temper'\], not \['mood'\]"):
        check_parity(tiny_trunk, segments, [head], BUCKETS)


def test_fixed_axis_is_found(tiny_trunk, exported, tmp_path):
    segments, head = exported
    model = onnx.load(tmp_path / "mood.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "mood.onnx")
    with pytest.raises(ParityError, match="batch and tokens must be dynamic"):
        check_parity(tiny_trunk, segments, [head], BUCKETS)


def test_broken_file_is_found(tiny_trunk, exported, tmp_path):
    segments, head = exported
    (tmp_path / "mood.onnx").write_bytes(b"not a model")
    with pytest.raises(ParityError, match="head_mood: ONNX Runtime does not load it"):
        check_parity(tiny_trunk, segments, [head], BUCKETS)


def test_batches_are_real_text_right_padded_in_every_bucket(tiny_trunk):
    batches = list(parity_batches(tiny_trunk, BUCKETS))
    assert [batch["input_ids"].shape for batch in batches] == [(1, 16), (4, 16), (1, 32), (4, 32)]
    for batch in batches:
        mask = batch["attention_mask"]
        assert np.array_equal(mask, np.arange(mask.shape[1]) < mask.sum(axis=1, keepdims=True))
    assert any(batch["token_type_ids"].any() for batch in batches), "no pair among the texts"
    assert any((batch["attention_mask"] == 0).any() for batch in batches), "no padding among the texts"


def test_a_state_may_be_off_by_a_share_of_its_greatest_number(tiny_trunk, exported, monkeypatch):
    """A feature that stands out is exact to a share of itself: 30 can be off by more than 1 may."""
    segments, _ = exported
    real = parity._run

    def off(session, model, *rest):
        state = real(session, model, *rest).copy()
        if model.startswith("trunk"):
            most = np.unravel_index(np.abs(state).argmax(), state.shape)
            state[most] *= 1 + share
        return state

    monkeypatch.setattr(parity, "_run", off)
    share = 0.5 * TOLERANCE
    assert max(check_parity(tiny_trunk, segments, [], BUCKETS).values()) > 0.4 * TOLERANCE
    share = 2 * TOLERANCE
    with pytest.raises(ParityError, match="answers differ from torch's"):
        check_parity(tiny_trunk, segments, [], BUCKETS)


def test_a_reference_that_is_nan_is_found(tiny_trunk, exported):
    segments, head = exported
    head.module.head.output.bias.data.fill_(math.nan)
    with pytest.raises(ParityError) as raised:
        check_parity(tiny_trunk, segments, [head], BUCKETS)
    assert raised.value.model == "head_mood"
    assert math.isnan(raised.value.difference)


def test_a_groups_difference_that_is_nan_is_found(tiny_trunk, exported, monkeypatch):
    segments, head = exported
    real = parity._score_difference
    monkeypatch.setattr(
        parity, "_score_difference", lambda model, *rest: math.nan if model == "heads_03" else real(model, *rest)
    )
    group = GroupFile("heads_03", head.path, [head.name])
    with pytest.raises(ParityError) as raised:
        check_parity(tiny_trunk, segments, [head], BUCKETS, groups=[group])
    assert raised.value.model == "heads_03"


@pytest.mark.parametrize(
    ("family", "tap", "layers"),
    [("mpnet", 1, 2), ("modernbert", 1, 2), ("albert", 0, 3)],
)
def test_a_limb_is_exported_as_its_branch_computes(family, tap, layers, family_trunk, tmp_path):
    """Layers may share parts, differ in form, or have one set of weights, and a limb may stand on the embeddings."""
    trunk = family_trunk(family)
    limb = random_limb(trunk, tmp_path / "limbs" / "pairs", tap=tap, layers=layers)
    spec = random_head_on(limb, trunk, tmp_path / "heads", "urgent")
    branch = limb.branch(trunk)
    head = load_bundle(tmp_path / "heads" / "urgent", trunk=branch).head(branch)
    segments = {Segment(0, tap): tmp_path / "low.onnx", limb.identity.segment: tmp_path / "limb.onnx"}
    for segment, path in segments.items():
        export_segment(branch.branch(segment.limb_id), segment, path, RELEASE)
    export_head(head, spec, tmp_path / "head.onnx", RELEASE)
    file = HeadFile("head_urgent", tmp_path / "head.onnx", spec, ServedHead(head, spec))
    worst = check_parity(branch, segments, [file], BUCKETS[:1])
    assert set(worst) == {f"trunk_00_{tap:02d}", limb.identity.segment.name, "head_urgent"}
