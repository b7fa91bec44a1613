"""The Python-based `onnxruntime` backend, on the repository's own models."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from onetrunk.export.sessions import ask_for_bf16
from onetrunk.machine import has_matrix_units


def read_config(repository: Path, name: str) -> dict[str, Any]:
    """The config as Triton hands it to a Python model: 64-bit numbers are strings."""
    text = (repository / name / "config.pbtxt").read_text()
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


@pytest.fixture
def backend(load: Callable[[str], Any]) -> Any:
    return load("server/onetrunk/serving/backends/onnxruntime/model.py")


@pytest.fixture
def start(backend: Any, repository: Path) -> Callable[..., Any]:
    def start(name: str, change: Callable[[dict[str, Any]], None] | None = None, **args: str) -> Any:
        config = read_config(repository, name)
        if change is not None:
            change(config)
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_name": name,
                "model_version": "1",
                "model_repository": str(repository / name),
                "model_config": json.dumps(config),
                "model_instance_kind": "CPU",
                **args,
            }
        )
        return model

    return start


def ids(*rows: list[int]) -> dict[str, np.ndarray]:
    array = np.array(rows, dtype=np.int64)
    return {"input_ids": array, "attention_mask": np.ones_like(array), "token_type_ids": np.zeros_like(array)}


class CountingSession:
    """ONNX Runtime's session, and a list of what it was asked to run."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.runs: list[tuple[tuple[str, ...], int]] = []

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        self.runs.append((tuple(names), len(next(iter(feeds.values())))))
        return self.session.run(names, feeds)


def test_requests_of_equal_shape_are_one_run_and_get_their_own_rows(start: Callable[..., Any], triton: Any) -> None:
    model = start("trunk_00_01")
    model.session = CountingSession(model.session)
    feeds = [ids([2, 4, 3]), ids([2, 5, 3], [2, 6, 3]), ids([2, 7, 3])]
    requests = [triton.Request(feed, ["hidden_01"]) for feed in feeds]
    together = model.execute(requests)
    assert model.session.runs == [(("hidden_01",), 4)]
    for request, response in zip(requests, together, strict=True):
        (alone,) = model.execute([request])
        np.testing.assert_array_equal(response.values()["hidden_01"], alone.values()["hidden_01"])


def test_requests_of_other_shapes_are_runs_of_their_own(start: Callable[..., Any], triton: Any) -> None:
    model = start("trunk_00_01")
    model.session = CountingSession(model.session)
    lengths = [3, 4, 3, 4]
    requests = [triton.Request(ids([2] * length), ["hidden_01"]) for length in lengths]
    shapes = [response.values()["hidden_01"].shape for response in model.execute(requests)]
    assert shapes == [(1, length, 8) for length in lengths]
    assert [rows for _, rows in model.session.runs] == [2, 2]


def test_only_the_bad_request_of_a_batch_fails(start: Callable[..., Any], triton: Any) -> None:
    model = start("trunk_00_01")
    feeds = [ids([2, 4, 3]), ids([2, 9999, 3]), ids([2, 5, 3])]
    good, bad, also_good = model.execute([triton.Request(feed, ["hidden_01"]) for feed in feeds])
    assert bad.error.message.startswith("trunk_00_01: ")
    assert "9999" in bad.error.message
    for response, feed in ((good, feeds[0]), (also_good, feeds[2])):
        (alone,) = model.execute([triton.Request(feed, ["hidden_01"])])
        np.testing.assert_array_equal(response.values()["hidden_01"], alone.values()["hidden_01"])


def test_only_requested_outputs_are_computed_and_returned(backend: Any, start: Callable[..., Any], triton: Any) -> None:
    model = start("trunk_00_01")

    class TwoOutputs:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert names == ["b"]
            return [feeds["input_ids"] * 10]

    model.session, model.outputs = TwoOutputs(), ["a", "b", "c"]
    responses = model.execute([triton.Request(ids([1]), ["b"]), triton.Request(ids([2]), [])])
    assert [{k: v.tolist() for k, v in response.values().items()} for response in responses] == [{"b": [[10]]}, {}]


def test_a_model_without_batching_runs_each_request_alone(start: Callable[..., Any], triton: Any) -> None:
    model = start("trunk_00_01")
    model.batched = False
    model.session = CountingSession(model.session)
    model.execute([triton.Request(ids([2, 3]), ["hidden_01"]) for _ in range(3)])
    assert [rows for _, rows in model.session.runs] == [1, 1, 1]


def test_another_file_name_is_honoured(start: Callable[..., Any], repository: Path) -> None:
    version = repository / "trunk_00_01" / "1"
    shutil.move(version / "model.onnx", version / "encoder.onnx")
    start("trunk_00_01", lambda config: config.update(default_model_filename="encoder.onnx"))


def test_telemetry_is_off_before_onnx_runtime_is_loaded(backend: Any) -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def strings(**values: str) -> dict[str, Any]:
    return {key: {"string_value": value} for key, value in values.items()}


def test_the_parameters_of_nvidias_backend_are_honoured(backend: Any) -> None:
    options = backend.session_options(
        {
            "parameters": strings(
                intra_op_thread_count="3",
                inter_op_thread_count="2",
                execution_mode="1",
                enable_mem_arena="0",
                enable_mem_pattern="0",
                tap="4",
            ),
            "optimization": {"graph": {"level": 1}},
        }
    )
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == backend.ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.graph_optimization_level == backend.ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


@pytest.mark.parametrize("config", [{}, {"parameters": {}, "optimization": {"graph": {"level": 0}}}])
def test_a_config_that_says_nothing_means_onnx_runtimes_defaults(backend: Any, config: dict[str, Any]) -> None:
    options, defaults = backend.session_options(config), backend.ort.SessionOptions()
    for name in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level"):
        assert getattr(options, name) == getattr(defaults, name)
    assert options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


def set_output(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["output"][0].update(changes)


def set_input(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["input"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_output(name="anger"), "output anger: the ONNX file has no such output, only ['mood']"),
        (set_output(dims=["3"]), "output mood: the config says dims [3], the ONNX file [2]"),
        (set_output(dims=["-1"]), "output mood: the config says dims [-1], the ONNX file [2]"),
        (set_output(dims=["2", "1"]), "output mood: the config says dims [2, 1], the ONNX file [2]"),
        (set_output(data_type="TYPE_FP16"), "output mood: the config says TYPE_FP16, the ONNX file TYPE_FP32"),
        (set_output(reshape={"shape": ["1"]}), "output mood: reshape is not supported"),
        (set_input(dims=["-1", "9"]), "input hidden_state: the config says dims [-1, 9], the ONNX file [-1, 8]"),
        (set_input(name="state"), "input state: the ONNX file has no such input"),
        (lambda config: config["input"].pop(1), "the ONNX file needs the inputs ['attention_mask']"),
        (lambda config: config.update(default_model_filename="x.onnx"), "version 1 has no file x.onnx"),
        (
            lambda config: config.update(parameters=strings(intra_op_thread_count="many")),
            "parameter intra_op_thread_count is 'many'",
        ),
        (lambda config: config.update(optimization={"graph": {"level": 7}}), "optimization.graph.level is 7"),
    ],
)
def test_a_config_that_does_not_fit_the_file_does_not_load(
    start: Callable[..., Any], triton: ModuleType, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(triton.TritonModelException, match=r"^head_mood: ") as error:
        start("head_mood", change)
    assert message in str(error.value)


def test_a_narrower_input_than_the_files_is_allowed(start: Callable[..., Any]) -> None:
    start("head_mood", set_input(dims=["16", "8"]))


def test_a_fixed_batch_size_is_refused(start: Callable[..., Any], triton: ModuleType, repository: Path) -> None:
    import onnx

    path = repository / "head_mood/1/model.onnx"
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    with pytest.raises(triton.TritonModelException, match="max_batch_size needs a dynamic first dimension"):
        start("head_mood")


def test_a_broken_file_names_the_model_and_the_runtime(
    backend: Any, start: Callable[..., Any], triton: ModuleType, repository: Path
) -> None:
    (repository / "head_mood/1/model.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(triton.TritonModelException) as error:
        start("head_mood")
    assert str(error.value).startswith(f"head_mood: ONNX Runtime {backend.ort.__version__} cannot load model.onnx: ")


def test_a_gpu_instance_needs_onnx_runtime_with_cuda(
    backend: Any, start: Callable[..., Any], triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(triton.TritonModelException, match="install onnxruntime-gpu"):
        start("head_mood", model_instance_kind="GPU", model_instance_device_id="0")
    monkeypatch.setattr(backend.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    chosen = backend.providers({"model_instance_kind": "GPU", "model_instance_device_id": "1"})
    assert chosen[0] == ("CUDAExecutionProvider", {"device_id": "1"})


def mark_bf16(repository: Path) -> None:
    path = repository / "trunk_00_01/1/model.onnx"
    model = onnx.load(path)
    ask_for_bf16(model)
    onnx.save(model, path)


@pytest.fixture
def in_bf16(repository: Path) -> Path:
    """The repository, of which a segment asks for bf16."""
    mark_bf16(repository)
    return repository


@pytest.mark.skipif(not has_matrix_units(), reason="this processor has no AMX")
def test_openvino_computes_what_asks_for_bf16(start: Callable[..., Any], triton: Any, repository: Path) -> None:
    request = triton.Request(ids([2, 4, 3], [2, 5, 3], [2, 6, 3]), ["hidden_01"])
    (exact,) = start("trunk_00_01").execute([request])
    mark_bf16(repository)
    model = start("trunk_00_01")
    assert model.session.get_providers()[0] == "OpenVINOExecutionProvider"
    (answer,) = model.execute([request])
    found, wanted = (one.values()["hidden_01"] for one in (answer, exact))
    assert (found.dtype, found.shape) == (np.float32, wanted.shape)
    np.testing.assert_allclose(found, wanted, atol=2e-2)


def test_few_shapes_are_run_in_bf16(backend: Any) -> None:
    """Each shape costs OpenVINO megabytes for good."""

    class Doubled:
        def __init__(self) -> None:
            self.rows: list[int] = []
            self.get_inputs = self.get_outputs = self.get_providers = list

        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            self.rows.append(len(feeds["x"]))
            return [2 * feeds["x"] for _ in names]

    session = Doubled()
    few = backend.FewShapes(session, most=20)
    for rows in range(1, 21):
        values = np.arange(3 * rows).reshape(rows, 3)
        (found,) = few.run(["y"], {"x": values})
        np.testing.assert_array_equal(found, 2 * values)
    assert sorted(set(session.rows)) == [1, 2, 4, 8, 16, 20]


def test_without_matrix_units_it_is_computed_in_fp32(
    in_bf16: Path, backend: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_int8\n")
    monkeypatch.setattr(backend, "CPUINFO", tmp_path / "cpuinfo")
    assert start("trunk_00_01").session.get_providers() == ["CPUExecutionProvider"]


def test_without_openvino_it_is_computed_in_fp32_and_the_log_says_what_to_install(
    in_bf16: Path, backend: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, triton: Any
) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n")
    monkeypatch.setattr(backend, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    monkeypatch.setattr(triton.Logger, "warnings", [])
    assert start("trunk_00_01").session.get_providers() == ["CPUExecutionProvider"]
    [warning] = triton.Logger.warnings
    assert warning.startswith("trunk_00_01 computes in fp32")
    assert "pip install 'onetrunk[openvino]'" in warning
