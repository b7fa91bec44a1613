"""From an fp32 ONNX file to one that computes in 16-bit floats, for GPUs. It runs on a CPU too, slowly."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx

from builder.export.onnx_file import ExportError

# Sums over many values, and powers of e: what fp16 has too few bits and too small a range for.
_FP32 = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")


def halve_file(source: Path, target: Path) -> None:
    """Makes a file compute in fp16. Inputs and outputs stay FP32, so that parts of any precision fit each other.

    Args:
        source: the fp32 file.
        target: where to.

    Raises:
        ExportError: the result is no valid ONNX.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(source)
    # The masks' very negative number becomes the most negative one that the converter allows, -1e4: e^-1e4 is 0 too.
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32], disable_shape_infer=False
        )
    # The converter puts its casts at the end of the list of nodes.
    OnnxModel(model).topological_sort(is_deterministic=True)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{source.name}: in fp16, it is no valid ONNX: {error}") from error
    onnx.save(model, target)
