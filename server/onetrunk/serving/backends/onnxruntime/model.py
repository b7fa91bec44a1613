"""The Triton backend `onnxruntime` in Python, which serves `model.onnx` if NVIDIA's C++ backend is missing.

A folder `onnxruntime/` with this file in Triton's backend directory makes `backend: "onnxruntime"` work with the
configs that NVIDIA's backend reads. The file stands alone: it needs numpy, onnxruntime and the modules of Triton's
Python backend.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]

# ONNX Runtime's name of an element type -> Triton's.
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}

# `optimization { graph { level } }` as NVIDIA's backend reads it; absent or 0 means everything.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


class ConfigError(ValueError):
    """The config requires something that the ONNX file or this backend does not have."""


def integer_parameter(config: dict[str, Any], key: str) -> int | None:
    """Return one of the config's `parameters` as an integer of at least 0, or None if it is absent.

    Raises:
        ConfigError: It is something else.
    """
    parameter = config.get("parameters", {}).get(key)
    if parameter is None:
        return None
    text = parameter["string_value"]
    if not text.isdecimal():
        raise ConfigError(f"parameter {key} is {text!r}; allowed: an integer, 0 or more")
    return int(text)


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Build ONNX Runtime's options from the parameters that NVIDIA's backend reads, under the same names.

    Raises:
        ConfigError: A parameter has a value that is not allowed.
    """
    options = ort.SessionOptions()
    threads = integer_parameter(config, "intra_op_thread_count")
    if threads is not None:
        options.intra_op_num_threads = threads
    threads = integer_parameter(config, "inter_op_thread_count")
    if threads is not None:
        options.inter_op_num_threads = threads
    # By default an idle thread spins for a while, since work might come at once. Here every model is a process of its
    # own, and the time that one spends spinning is missing in the next: on two cores, half of all the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if integer_parameter(config, "execution_mode"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    arena = integer_parameter(config, "enable_mem_arena")
    if arena is not None:
        options.enable_cpu_mem_arena = bool(arena)
    pattern = integer_parameter(config, "enable_mem_pattern")
    if pattern is not None:
        options.enable_mem_pattern = bool(pattern)
    # Triton's JSON form of the config always has the key, with level 0 where the file says nothing.
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise ConfigError(f"optimization.graph.level is {level}; allowed: -1 (basic), 1 (extended), or absent (all)")
    options.graph_optimization_level = GRAPH_LEVELS[level]
    return options


def providers(args: dict[str, str]) -> list[Any]:
    """Choose where the model runs, by the instance's kind: the CPU, or the GPU that Triton named.

    Raises:
        ConfigError: It should run on a GPU, but this ONNX Runtime has no CUDA.
    """
    if args.get("model_instance_kind") != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError(
            "instance_group asks for KIND_GPU, but this ONNX Runtime has no CUDA: "
            "install onnxruntime-gpu in place of onnxruntime, or build-repo --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}), "CPUExecutionProvider"]


# A file with this in its metadata is computed in bf16, by OpenVINO, if the processor has matrix units for it (AMX).
# Without these bf16 is no faster than fp32, or many times slower.
PRECISION_KEY, BF16 = "onetrunk_precision", "bf16"
CPUINFO = Path("/proc/cpuinfo")


def has_matrix_units() -> bool:
    """Return whether the processor has matrix units for bf16."""
    try:
        return bool(re.search(r"^flags\s*:.*\bamx_bf16\b", CPUINFO.read_text(encoding="utf-8"), re.M))
    except OSError:
        return False


@functools.cache
def openvino_device() -> Any:
    """Return the processor as OpenVINO's plugin for ONNX Runtime drives it; None if that is not there."""
    try:
        import onnxruntime_ep_openvino as plugin

        ort.register_execution_provider_library("onnxruntime_ep_openvino", plugin.get_library_path())
        name, devices = plugin.get_ep_name(), ort.get_ep_devices()
    except Exception:  # it is not installed, or does not fit this ONNX Runtime: each raises another type
        return None
    kind = ort.OrtHardwareDeviceType.CPU
    return next((device for device in devices if device.ep_name == name and device.device.type == kind), None)


class FewShapes:
    """A session that runs batches of 1, 2, 4, 8, ... rows alone; to a batch between its last row is added again.

    OpenVINO makes code, and a copy of the weights, for each shape that it meets, and keeps them: of all numbers of rows
    that would be hundreds of megabytes a model.
    """

    def __init__(self, session: ort.InferenceSession, most: int) -> None:
        self._session, self._most = session, most
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_providers = session.get_providers

    def run(self, names: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
        """Return the outputs of these names."""
        rows = len(next(iter(feeds.values())))
        more = min(1 << (rows - 1).bit_length(), self._most) - rows if rows else 0
        if more > 0:
            feeds = {name: np.concatenate([feed, np.repeat(feed[-1:], more, axis=0)]) for name, feed in feeds.items()}
        return [value[:rows] for value in self._session.run(names, feeds)]


def load(path: Path, config: dict[str, Any], args: dict[str, str]) -> Any:
    """Load a file: on ONNX Runtime's own kernels, or on OpenVINO's if it asks for bf16, and this CPU has units for it.

    Raises:
        ConfigError: The config asks for what is not there.
    """
    options, where = session_options(config), providers(args)
    session = ort.InferenceSession(str(path), sess_options=options, providers=where)
    in_bf16 = session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY) == BF16
    if not in_bf16 or where != ["CPUExecutionProvider"] or not has_matrix_units():
        return session
    if openvino_device() is None:
        pb_utils.Logger.log_warn(
            f"{args['model_name']} computes in fp32, though it asks for bf16 and this processor is fast in that: pip "
            f"install 'onetrunk[openvino]', beside ONNX Runtime 1.23 or newer (here is {ort.__version__})"
        )
        return session
    del session
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": BF16,
        # OpenVINO's compiler of small operations, which makes these models no faster, fails on files of several heads.
        "SNIPPETS_MODE": "DISABLE",
        # Each process would pin its threads from the first core on, and all models would wait for that one.
        "ENABLE_CPU_PINNING": "NO",
    }
    if options.intra_op_num_threads:
        settings["INFERENCE_NUM_THREADS"] = options.intra_op_num_threads
    options.add_provider_for_devices([openvino_device()], {"load_config": json.dumps({"CPU": settings})})
    in_openvino = ort.InferenceSession(str(path), sess_options=options)
    most = int(config.get("max_batch_size", 0))
    return FewShapes(in_openvino, most) if most > 0 else in_openvino


def check_tensor(role: str, declared: dict[str, Any], actual: Any, batched: bool) -> None:
    """Compare one tensor of the config with the ONNX file's tensor of the same name.

    Args:
        role: `input` or `output`, for the message.
        declared: The config's entry: `name`, `data_type`, `dims`.
        actual: ONNX Runtime's description: `name`, `type`, and `shape`, with a name or None for a dynamic dimension.
        batched: Whether the model has a batch dimension, which the config's `dims` leave out.

    Raises:
        ConfigError: The two do not agree.
    """
    name = declared["name"]
    if declared.get("reshape", {}).get("shape"):
        raise ConfigError(f"{role} {name}: reshape is not supported by this backend; write the file's own dims")
    file_type = TRITON_TYPES.get(actual.type, actual.type)
    if declared["data_type"] != file_type:
        raise ConfigError(f"{role} {name}: the config says {declared['data_type']}, the ONNX file {file_type}")
    file_dims = [size if isinstance(size, int) else -1 for size in actual.shape]
    config_dims = [int(size) for size in declared["dims"]]
    if batched:
        if not file_dims or file_dims[0] != -1:
            raise ConfigError(
                f"{role} {name}: max_batch_size needs a dynamic first dimension, the ONNX file has {file_dims}"
            )
        file_dims = file_dims[1:]
    # As in NVIDIA's backend, an input may be declared narrower than in the file, but an output must be the same.
    fits = len(file_dims) == len(config_dims) and all(
        in_config == in_file or (role == "input" and in_file == -1)
        for in_config, in_file in zip(config_dims, file_dims, strict=True)
    )
    if not fits:
        raise ConfigError(f"{role} {name}: the config says dims {config_dims}, the ONNX file {file_dims}")


def check_config(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Check that names, types and dims in the config are those of the ONNX file.

    Raises:
        ConfigError: A tensor differs. The message has its name and both values.
    """
    batched = int(config.get("max_batch_size", 0)) > 0
    for role, declared, actual in (
        ("input", config["input"], session.get_inputs()),
        ("output", config["output"], session.get_outputs()),
    ):
        in_file = {tensor.name: tensor for tensor in actual}
        for tensor in declared:
            if tensor["name"] not in in_file:
                raise ConfigError(f"{role} {tensor['name']}: the ONNX file has no such {role}, only {sorted(in_file)}")
            check_tensor(role, tensor, in_file[tensor["name"]], batched)
        missing = in_file.keys() - {tensor["name"] for tensor in declared}
        # Outputs that are not declared are never computed; an input cannot be left out.
        if role == "input" and missing:
            raise ConfigError(f"the ONNX file needs the inputs {sorted(missing)}, which the config does not declare")


def group_by_shape(feeds: Sequence[dict[str, Array]]) -> list[list[int]]:
    """Group the positions of requests whose inputs differ at most in the batch dimension."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, feed in enumerate(feeds):
        key = tuple((name, array.shape[1:]) for name, array in sorted(feed.items()))
        groups.setdefault(key, []).append(position)
    return list(groups.values())


# The id of requests that only find out whether models answer, which are not counted.
CHECK_ID = "onetrunk-check"


class PartSeconds:
    """A histogram of the seconds that requests spend in this model, told as the counters that Prometheus makes of one.

    Triton has histograms of its own, but each value costs a message to its process. These are told once a second.
    """

    LIMITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, float("inf"))

    def __init__(self, part: str) -> None:
        self.counted = [0] * len(self.LIMITS_S)
        self.sum_s = 0.0
        self.told_at = time.monotonic()
        # A family must live as long as its metrics.
        self.families = {
            kind: pb_utils.MetricFamily(
                name=f"onetrunk_part_seconds_{kind}",
                description=f"Seconds of a request's run in a part: {text}",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            for kind, text in (("bucket", "runs of at most so many"), ("sum", "their sum"), ("count", "runs"))
        }
        labels = {"part": part}
        self.buckets = [
            self.families["bucket"].Metric(labels=labels | {"le": f"{limit:g}" if limit < float("inf") else "+Inf"})
            for limit in self.LIMITS_S
        ]
        self.sum, self.count = self.families["sum"].Metric(labels=labels), self.families["count"].Metric(labels=labels)

    def add(self, seconds: float, requests: Sequence[Any]) -> None:
        """Count requests that were answered together, and tell Triton, unless it was told within the last second."""
        number = sum(request.request_id() != CHECK_ID for request in requests)
        self.counted[bisect.bisect_left(self.LIMITS_S, seconds)] += number
        self.sum_s += number * seconds
        now = time.monotonic()
        if now - self.told_at >= 1.0:
            self.told_at = now
            self._tell()

    def _tell(self) -> None:
        total = 0
        for bucket, number in zip(self.buckets, self.counted, strict=True):
            total += number
            if total:
                bucket.increment(total)
        if total:
            self.count.increment(total)
            self.sum.increment(self.sum_s)
        self.counted, self.sum_s = [0] * len(self.LIMITS_S), 0.0


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model file of this version and check the config against it.

        Raises:
            TritonModelException: The file is missing or broken, or the config does not fit it.
        """
        self.name = args["model_name"]
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file_name
        try:
            if not path.is_file():
                raise ConfigError(f"version {args['model_version']} has no file {file_name}")
            try:
                self.session = load(path, config, args)
            except ConfigError:
                raise
            except Exception as error:  # ONNX Runtime raises a dozen types that share no base but this.
                raise ConfigError(f"ONNX Runtime {ort.__version__} cannot load {file_name}: {error}") from error
            check_config(config, self.session)
        except ConfigError as error:
            raise pb_utils.TritonModelException(f"{self.name}: {error}") from None
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.batched = int(config.get("max_batch_size", 0)) > 0
        self.seconds = PartSeconds(self.name)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests that Triton passes."""
        began = time.perf_counter()
        responses = self._answer(requests)
        self.seconds.add(time.perf_counter() - began, requests)
        return responses

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests with one run of the session for those of equal shape."""
        feeds = [self._feed(request) for request in requests]
        wanted = [[name for name in self.outputs if name in request.requested_output_names()] for request in requests]
        responses: list[Any] = [None] * len(requests)
        groups = group_by_shape(feeds) if self.batched else [[position] for position in range(len(requests))]
        for group in groups:
            answers = self._run_group([feeds[i] for i in group], [wanted[i] for i in group])
            for position, answer in zip(group, answers, strict=True):
                responses[position] = answer
        return responses

    def _feed(self, request: Any) -> dict[str, Array]:
        tensors = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs)
        return {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}

    def _run_group(self, feeds: list[dict[str, Array]], wanted: list[list[str]]) -> list[Any]:
        """Run requests of equal shape together; if that fails, each alone, so that only the bad ones fail."""
        if len(feeds) == 1:
            return [self._run_one(feeds[0], wanted[0])]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        names = [name for name in self.outputs if any(name in of_request for of_request in wanted)]
        try:
            values = dict(zip(names, self.session.run(names, together), strict=True))
        except Exception:
            return [self._run_one(feed, of_request) for feed, of_request in zip(feeds, wanted, strict=True)]
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
        parts = {name: np.split(value, ends[:-1]) for name, value in values.items()}
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, parts[name][i]) for name in of_request])
            for i, of_request in enumerate(wanted)
        ]

    def _run_one(self, feed: dict[str, Array], names: list[str]) -> Any:
        try:
            values = self.session.run(names, feed)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self.name}: {error}"))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(names, values, strict=True)]
        )
