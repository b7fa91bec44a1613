"""A head of unknown origin answers each text from this text alone, or is refused with what it does and how far."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onetrunk.export.chain import open_session
from onetrunk.export.errors import ParityError
from onetrunk.export.exported_head import ExportedHead
from onetrunk.export.independence import check_independence
from onetrunk.export.release import get_release
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.head_spec import HeadSpec

pytestmark = pytest.mark.hostile

WIDTH = 8
BUCKETS = (8, 16)
CONSTANTS = {
    "zero": np.array([0], dtype=np.int64),
    "one": np.array([1], dtype=np.int64),
    "two": np.array([2], dtype=np.int64),
    "eight": np.array([8], dtype=np.int64),
    "many": np.array([1 << 40], dtype=np.int64),
    "minus_one": np.array([-1], dtype=np.int64),
    "half": np.array(0.5, dtype=np.float32),
    "small": np.array(1e-3, dtype=np.float32),
    "yes": np.array(True),
    "weight": np.random.default_rng(0).normal(size=(WIDTH, 2)).astype(np.float32),
    "first": np.array(0, dtype=np.int64),
    "last": np.array(-1, dtype=np.int64),
}


def spec(kind: str = "classification") -> HeadSpec:
    return HeadSpec(
        task="urgent", kind=kind, form="single", labels=("no", "yes"), range=None, tap=1, layers=1, trunk="tiny",
        width=WIDTH, max_length=16, metric="accuracy" if kind == "classification" else "f1", scores={}, created="",
        onetrunk_version="0",
    )  # fmt: skip


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def pool_masked() -> list[onnx.NodeProto]:
    """The right way: the mean of the states that the mask keeps."""
    return [
        node("Cast", "attention_mask", "kept", to=TensorProto.FLOAT),
        node("Unsqueeze", "kept two", "column"),
        node("Mul", "hidden_state column", "masked"),
        node("ReduceSum", "masked one", "sum", keepdims=0),
        node("ReduceSum", "kept one", "count", keepdims=1),
        node("Div", "sum count", "pooled"),
    ]


def first_token() -> list[onnx.NodeProto]:
    return [node("Gather", "hidden_state first", "pooled", axis=1)]


# Each fault is a pooling that gives `pooled`, (rows, width).
SOUND = {"masked mean": pool_masked(), "first token": first_token()}
MIXING = {
    "normalised over the batch": [
        node("Gather", "hidden_state first", "own", axis=1),
        node("ReduceMean", "own", "mean", axes=[0], keepdims=1),
        node("Sub", "own mean", "pooled"),
    ],
    "sums the rows before it": [
        node("Gather", "hidden_state first", "own", axis=1),
        node("CumSum", "own first", "pooled"),
    ],
    "one scale for all rows, as by dynamic quantization": [
        node("Gather", "hidden_state first", "own", axis=1),
        helper.make_node("DynamicQuantizeLinear", ["own"], ["integers", "scale", "shift"]),
        node("DequantizeLinear", "integers scale shift", "pooled"),
    ],
    # Alone and in a small batch it is right.
    "large batches only": [
        node("Gather", "hidden_state first", "own", axis=1),
        node("Slice", "own zero eight zero", "head"),
        node("Slice", "own eight many zero", "tail"),
        node("Neg", "tail", "spoilt"),
        node("Concat", "head spoilt", "pooled", axis=0),
    ],
}  # fmt: skip
PADDING = {
    "mean without the mask": [node("ReduceMean", "hidden_state", "pooled", axes=[1], keepdims=0)],
    "last token of the bucket": [node("Gather", "hidden_state last", "pooled", axis=1)],
    "greatest of all tokens": [node("ReduceMax", "hidden_state", "pooled", axes=[1], keepdims=0)],
    "counts the tokens of the bucket": [
        *pool_masked()[:-1],
        node("Shape", "attention_mask", "shape"),
        node("Gather", "shape one", "tokens", axis=0),
        node("Cast", "tokens", "width", to=TensorProto.FLOAT),
        node("Div", "sum width", "pooled"),
    ],
}
RANDOM = {
    "noise": [
        node("Gather", "hidden_state first", "own", axis=1),
        node("RandomNormalLike", "own", "noise"),
        node("Mul", "noise small", "little"),
        node("Add", "own little", "pooled"),
    ],
}


@pytest.fixture
def head(tmp_path):
    """Writes a head with a pooling of one's own; gives its folder."""

    def write(pooling: list[onnx.NodeProto]):
        nodes = [*pooling, node("MatMul", "pooled weight", "raw"), node("Softmax", "raw", "urgent")]
        graph = helper.make_graph(
            nodes,
            "head",
            [
                helper.make_tensor_value_info("hidden_state", TensorProto.FLOAT, ["N", "T", WIDTH]),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", "T"]),
            ],
            [helper.make_tensor_value_info("urgent", TensorProto.FLOAT, ["N", 2])],
            [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "head.onnx")
        return tmp_path

    return write


def batch(lengths: list[int], bucket: int):
    state = np.random.default_rng(1).normal(size=(len(lengths), bucket, WIDTH)).astype(np.float32)
    mask = (np.arange(bucket) < np.array(lengths)[:, None]).astype(np.int64)
    return state, mask


def check(folder, lengths=(3, 5, 9, 16), bucket=16, **changes) -> None:
    session = open_session(folder / "head.onnx", "head_urgent")

    def answers(state, mask):
        return session.run(["urgent"], {"hidden_state": state, "attention_mask": mask})[0]

    check_independence("head_urgent", spec(), changes.get("answers", answers), *batch(list(lengths), bucket), BUCKETS)


@pytest.mark.parametrize("pooling", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("lengths", [(3, 5, 9, 16), (16,), (4,)])
def test_sound_head_passes(head, pooling, lengths):
    check(head(pooling), lengths)


@pytest.mark.parametrize(
    ("pooling", "fault"),
    [
        *((pooling, r"mixes rows: a text gets another answer (alone|beside)") for pooling in MIXING.values()),
        *((pooling, "depends on padding: a text gets another answer (if|in)") for pooling in PADDING.values()),
        *((pooling, "is random: the same texts get other answers in a second run") for pooling in RANDOM.values()),
    ],
    ids=[*MIXING, *PADDING, *RANDOM],
)
def test_faulty_head_is_refused_with_what_it_does_and_how_far(head, pooling, fault):
    amount = r"greatest difference \d\.\d\de[-+]\d\d, allowed 1e-04"
    with pytest.raises(ParityError, match=rf"^head_urgent: {fault}.* \(on batch 4 x 16 tokens\): {amount}") as raised:
        check(head(pooling))
    assert "\n" not in str(raised.value)
    assert raised.value.difference > 1e-4


def test_rows_that_go_missing_are_found(head):
    with pytest.raises(ParityError, match="answers 3 rows for 4 texts"):
        check(head(first_token()), answers=lambda state, mask: np.full((3, 2), 0.5, dtype=np.float32))


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "in a branch"])
def test_random_operator_is_refused_unrun(head, hidden):
    folder = head(RANDOM["noise"])
    model = onnx.load(folder / "head.onnx")
    if hidden:
        inner = helper.make_graph(
            [helper.make_node("RandomUniform", [], ["drawn"], shape=[1])],
            "branch",
            [],
            [helper.make_tensor_value_info("drawn", TensorProto.FLOAT, [1])],
        )
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner))
        onnx.save(model, folder / "head.onnx")
    operator = "RandomUniform" if hidden else "RandomNormalLike"
    with pytest.raises(UserError, match=rf"is random \({operator}\): export it in evaluation mode"):
        ExportedHead(folder, spec()).check_file(get_release("24.10"))


def test_tags_are_compared_at_the_tokens_of_the_text_only():
    """The output for every token has another width in another bucket, which is no fault; another tag is one."""

    def tags(state, mask):
        found = np.stack([np.where(mask == 1, (state[..., 0] > 0) * 3, -1), 0.5 * mask], axis=-1)
        return found.astype(np.float32)

    def by_bucket(state, mask):
        found = tags(state, mask)
        found[..., 0] = np.where(mask == 1, mask.shape[1] % 3, -1)
        return found

    tagging = spec("tagging")
    check_independence("head_urgent", tagging, tags, *batch([3, 5, 9], 16), BUCKETS)
    with pytest.raises(ParityError, match=r"depends on padding: .* in a shorter bucket"):
        check_independence("head_urgent", tagging, by_bucket, *batch([3, 5, 9], 16), BUCKETS)
