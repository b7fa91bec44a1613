"""The processes of models, by their command lines."""

from __future__ import annotations

from onetrunk.serving.stubs import Stub, parse_stub, stub_processes


def test_a_stubs_command_line_names_its_model() -> None:
    command = "/b/triton_python_backend_stub /r/head_mood/3/model.onnx region 1 1 77 /b 336 head_mood_0_0 /b/ort"
    assert parse_stub(command.split()) == Stub("head_mood", 3, "head_mood_0_0")
    assert parse_stub(["/usr/bin/tritonserver", "--model-repository=/r"]) is None
    assert parse_stub([]) is None


def test_a_triton_that_is_gone_has_no_processes() -> None:
    assert stub_processes(2**22 + 1) == []
