"""ONNX Runtime's sessions: a file runs on its own kernels, or, where the file asks for bf16, on OpenVINO's.

OpenVINO is a plugin of ONNX Runtime, a package of its own, which computes fp32 files in bf16 on processors that have
matrix units for it (AMX). That a file is to be computed so is written in its metadata. On another processor, without
the plugin, and by a runtime that knows nothing of this, the same file is computed in fp32. The server's backend does
the same as this module, in a file that stands alone.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
from pathlib import Path

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
import onnxruntime

from onetrunk.machine import has_matrix_units
from onetrunk.protocol.errors import UserError

_KEY, _BF16 = "onetrunk_precision", "bf16"
_PACKAGE = "onnxruntime-ep-openvino"
_PROVIDER = "OpenVINOExecutionProvider"
# The first ONNX Runtime that loads plugins.
_LEAST_RUNTIME = "1.23"


def ask_for_bf16(model: onnx.ModelProto) -> None:
    """Write into a model that it is to be computed in bf16."""
    onnx.helper.set_model_props(model, {**_properties(model), _KEY: _BF16})


def asks_for_bf16(model: onnx.ModelProto) -> bool:
    """Return whether a model is to be computed in bf16."""
    return _properties(model).get(_KEY) == _BF16


def _properties(model: onnx.ModelProto) -> dict[str, str]:
    return {one.key: one.value for one in model.metadata_props}


def load_session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a file, on the processor.

    Args:
        path: The ONNX file.
        options: The session's options. Where the file asks for bf16 they are changed, so each session needs its own.

    Raises:
        Exception: ONNX Runtime does not load the file; it has one class a status, without a common base.
    """
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if session.get_modelmeta().custom_metadata_map.get(_KEY) != _BF16 or not computes_in_bf16():
        return session
    del session
    settings: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _BF16,
        # Its compiler of small operations, which makes these models no faster, fails on files of several heads.
        "SNIPPETS_MODE": "DISABLE",
        # Each process would pin its threads from the first core on, and all models would wait for that one.
        "ENABLE_CPU_PINNING": "NO",
    }
    if options.intra_op_num_threads:
        settings["INFERENCE_NUM_THREADS"] = options.intra_op_num_threads
    options.add_provider_for_devices([_openvino()], {"load_config": json.dumps({"CPU": settings})})
    return onnxruntime.InferenceSession(str(path), options)


def computes_in_bf16() -> bool:
    """Return whether what asks for bf16 is computed so here: the processor has units for it, and OpenVINO is there."""
    return has_matrix_units() and _openvino() is not None


def openvino_version() -> str:
    """Return the version of the plugin, which is installed."""
    return importlib.metadata.version(_PACKAGE)


def check_openvino(what: str) -> None:
    """Check that OpenVINO is here, which computes in bf16.

    Args:
        what: What asks for it, for the message.

    Raises:
        UserError: It is not, or ONNX Runtime is too old for it.
    """
    if _openvino() is None:
        raise UserError(
            f"{what}: OpenVINO computes in bf16, and it is not here: pip install 'onetrunk[openvino]', beside ONNX "
            f"Runtime {_LEAST_RUNTIME} or newer (here is {onnxruntime.__version__})"
        )


@functools.cache
def _openvino() -> onnxruntime.OrtEpDevice | None:
    """Return the processor as OpenVINO drives it; None if the plugin is not installed, or ONNX Runtime loads none."""
    try:
        import onnxruntime_ep_openvino

        onnxruntime.register_execution_provider_library(_PACKAGE, onnxruntime_ep_openvino.get_library_path())
        devices = onnxruntime.get_ep_devices()
    except Exception:  # it is not there, or too old, or does not fit this ONNX Runtime: each raises another type
        return None
    kind = onnxruntime.OrtHardwareDeviceType.CPU
    return next((one for one in devices if one.ep_name == _PROVIDER and one.device.type == kind), None)
