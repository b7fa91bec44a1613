"""ONNX files from elsewhere run in a process that is ended: endless loops, memory bombs and crashes end in one line."""

import signal

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from onetrunk.export.errors import ParityError
from onetrunk.export.foreign import ForeignSession

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

MODEL = "head_urgent"


def save(path, nodes, **constants):
    """Writes a head of the right signature whose answer is what the nodes make of the state."""
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info("hidden_state", TensorProto.FLOAT, ["N", "T", 4]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", "T"]),
        ],
        [helper.make_tensor_value_info("urgent", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mean(path):
    return save(path, [helper.make_node("ReduceMean", ["hidden_state"], ["urgent"], axes=[1], keepdims=0)])


def endless(path):
    """A Loop of 2^62 rounds, whose condition never becomes false."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "one"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, None),
        ],
    )
    return save(
        path,
        [
            helper.make_node("ReduceMean", ["hidden_state"], ["start"], axes=[1], keepdims=0),
            helper.make_node("Loop", ["rounds", "go", "start"], ["urgent"], body=body),
        ],
        rounds=np.array(2**62),
        go=np.array(True),
        one=np.array(1, dtype=np.float32),
    )


def memory_bomb(path):
    """Hundreds of GiB of zeros, which are written."""
    return save(
        path,
        [
            helper.make_node("ConstantOfShape", ["size"], ["many"]),
            helper.make_node("ReduceMean", ["many"], ["zero"], axes=[0], keepdims=0),
            helper.make_node("ReduceMean", ["hidden_state"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Add", ["mean", "zero"], ["urgent"]),
        ],
        size=np.array([2**37]),
    )


FEEDS = {"hidden_state": np.ones((2, 3, 4), np.float32), "attention_mask": np.ones((2, 3), np.int64)}


def process_of(session):
    return psutil.Process(session._process.pid)


def test_a_head_answers_as_in_this_process_and_leaves_no_process(tmp_path):
    session = ForeignSession(mean(tmp_path / "head.onnx"), MODEL)
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("hidden_state", "tensor(float)"),
        ("attention_mask", "tensor(int64)"),
    ]
    assert session.get_outputs()[0].shape == ["N", 4]
    for _ in range(2):
        (found,) = session.run(["urgent"], FEEDS)
        np.testing.assert_allclose(found, np.ones((2, 4)))
    process = process_of(session)
    del session
    assert not process.is_running()


def test_an_endless_loop_is_ended_and_its_progress_shown(tmp_path):
    shown = []
    session = ForeignSession(endless(tmp_path / "head.onnx"), MODEL, waiting=lambda *one: shown.append(one))
    shown.clear()
    process = process_of(session)
    session._answer_time_s = 2.0  # only now: on a busy machine it may take longer to be loaded
    with pytest.raises(ParityError) as raised:
        session.run(["urgent"], FEEDS)
    assert str(raised.value).startswith("head_urgent: needs more than 2 s to answer a batch of 2 x 3 tokens, and was")
    assert "\n" not in str(raised.value)
    assert not process.is_running()
    assert {(what, allowed) for what, _, allowed in shown} == {("head_urgent to answer a batch of 2 x 3 tokens", 2.0)}


def test_memory_is_bounded(tmp_path):
    before = psutil.virtual_memory().available
    with pytest.raises(ParityError) as raised:
        ForeignSession(memory_bomb(tmp_path / "head.onnx"), MODEL).run(["urgent"], FEEDS)
    assert "\n" not in str(raised.value)
    assert before - psutil.virtual_memory().available < 4 * 2**30


def test_a_process_that_dies_is_told(tmp_path):
    session = ForeignSession(mean(tmp_path / "head.onnx"), MODEL)
    process_of(session).send_signal(signal.SIGSEGV)
    with pytest.raises(ParityError, match=r"head_urgent: its process was ended by SIGSEGV when it was to answer"):
        session.run(["urgent"], FEEDS)


def test_what_is_no_model_is_told(tmp_path):
    (tmp_path / "head.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(ParityError, match="head_urgent: ONNX Runtime does not load it: ") as raised:
        ForeignSession(tmp_path / "head.onnx", MODEL)
    assert "\n" not in str(raised.value)


def test_it_sees_no_admin_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "secret")
    session = ForeignSession(mean(tmp_path / "head.onnx"), MODEL)
    assert "secret" not in str(process_of(session).environ())
    del session
