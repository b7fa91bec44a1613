"""Heads that someone else exported: taken like a bundle, or refused with the reason."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onetrunk.deploy import Deployer
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.repository import BuildRequest, build_repository

WIDTH = 32


def write_head(
    folder, *, inputs=None, output=None, labels=2, bias=0.0, softmax=True, opset=17, ir=8, width=WIDTH, **toml
):
    """A mean over tokens, a linear layer and a softmax, made without any of our code."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    state, mask = inputs or ("hidden_state", "attention_mask")
    output = output or folder.name
    weight = generator.normal(size=(width, labels)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [mask], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", [state, "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "weight"], ["raw"]),
        helper.make_node("Add", ["raw", "bias"], ["biased"]),
        helper.make_node("Softmax" if softmax else "Identity", ["biased"], [output]),
    ]
    constants = {
        "last": np.array([2], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
        "weight": weight,
        "bias": np.full(labels, bias, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(state, TensorProto.FLOAT, ["N", "T", width]),
            helper.make_tensor_value_info(mask, TensorProto.INT64, ["N", "T"]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", labels])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, folder / "head.onnx")
    lines = {"kind": '"classification"', "form": '"single"', "labels": '["no", "yes"]', "tap": "2", **toml}
    (folder / "head.toml").write_text("".join(f"{key} = {value}\n" for key, value in lines.items() if value))
    return folder


@pytest.fixture
def exported(tmp_path, tiny_trunk):
    """Writes an exported head of the task `urgent`, on tap 2."""

    def make(**changes):
        changes.setdefault("trunk", f'"{tiny_trunk.identity}"')
        return write_head(tmp_path / "exported" / "urgent", **changes)

    return make


def test_it_is_deployed_like_a_bundle(deployer, repository, exported, chain):
    folder = exported()
    report = deployer.deploy(folder)
    assert (report.task, report.to_version) == ("urgent", 1)
    assert (repository / "head_urgent/1/model.onnx").read_bytes() == (folder / "head.onnx").read_bytes()
    assert (repository / "multitask/labels_urgent.txt").read_text() == "no\nyes\n"
    assert deployer.verify() == []
    assert not deployer.deploy(folder).changed
    assert deployer.deploy(exported(bias=1.0, softmax=True)).to_version == 2
    deployer.rollback("urgent")
    assert deployer.verify() == []


def test_it_is_built_like_a_bundle(exported, tiny_heads, tiny_trunk_folder, tmp_path):
    import shutil

    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.copytree(exported(), heads / "urgent")
    output = tmp_path / "built"
    report = build_repository(BuildRequest(output=output, heads=heads, trunk=tiny_trunk_folder, max_length=32))
    assert report.models["head_urgent"] == "version 1, new"
    assert "head_urgent" not in report.differences, "there is nothing to compare it with"
    assert not build_repository(
        BuildRequest(output=output, heads=heads, trunk=tiny_trunk_folder, max_length=32)
    ).changed
    assert Deployer(output, url=None).verify() == []


def not_onnx(folder):
    (folder / "head.onnx").write_bytes(b"\x00 no ONNX")


def outside(folder):
    model = onnx.load(folder / "head.onnx")
    onnx.save(model, folder / "head.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")


def foreign(folder):
    model = onnx.load(folder / "head.onnx")
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    onnx.save(model, folder / "head.onnx")


def mixing(folder):
    """Takes the mean of the batch off each text's sum, as a normalisation over the batch does."""
    model = onnx.load(folder / "head.onnx")
    product = next(place for place, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    model.graph.node[product].input[0] = "own"
    model.graph.node.insert(product, helper.make_node("Sub", ["sum", "mean"], ["own"]))
    model.graph.node.insert(product, helper.make_node("ReduceMean", ["sum"], ["mean"], axes=[0], keepdims=1))
    onnx.save(model, folder / "head.onnx")


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({"inputs": ("state", "attention_mask")}, None, r"inputs are \['attention_mask', 'state'\], not"),
        ({"output": "scores"}, None, r"outputs are \['scores'\], not \['urgent'\]"),
        ({"width": 16}, None, "the trunk's width is 32"),
        ({"labels": 3}, None, "TOML"),
        ({"bias": float("nan")}, None, "head_urgent: answers NaN or infinity on"),
        ({"softmax": False}, None, "not probabilities that sum to 1: export it with its softmax"),
        ({"opset": 22}, None, "opset 22, but Triton 24.10 reads"),
        ({"ir": 11}, None, "IR 11 and opset 17, but Triton 24.10 reads"),
        ({"tap": "9"}, None, "tap 9 is not on this trunk"),
        ({"tap": '"deep"'}, None, "key tap: found 'deep'"),
        ({"trunk": '"bert-6x384@ffffffffffff"'}, None, "made for trunk bert-6x384@ffffffffffff, but this trunk is"),
        ({"trunk": ""}, None, "key trunk is missing"),
        ({"kind": '"guess"'}, None, "kind 'guess' is not known; allowed are classification, regression"),
        ({"labels_": "1"}, None, "key labels_ is not known \\(did you mean labels\\?\\)"),
        ({"labels": 2, "task": '"hidden_02"', "output": "hidden_02"}, None, "is the name of a tensor|its task is"),
        ({}, not_onnx, "is not an ONNX file|opset 0"),
        ({}, outside, "has external weights"),
        ({}, mixing, "head_urgent: mixes rows: a text gets another answer alone than in a batch"),
        ({}, foreign, "uses operators of org.example"),
        ({}, lambda folder: (folder / "head.onnx").unlink(), "no head.onnx"),
    ],
)
def test_bad_one_is_refused_and_nothing_is_touched(deployer, repository, exported, visible, changes, spoil, message):
    if changes.get("labels") == 3:
        folder = exported(labels=3)
        message = r"has dims \['N', 3\], not \['dynamic', 2\]"
    else:
        folder = exported(**changes)
    if spoil:
        spoil(folder)
    before = visible(repository)
    with pytest.raises(OneTrunkError, match=message):
        deployer.deploy(folder)
    assert visible(repository) == before
    assert deployer.verify() == []
