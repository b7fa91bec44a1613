"""Heads of one tap in one ONNX file: composed from their own files, so that a head is grouped whoever exported it.

A model of its own costs every request a hop: Triton hands the state over, its process wakes up, answers, sleeps. For
folded heads that is as dear as the head itself, and with many heads it is nearly all of the price.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from builder.export.merged import merge_models, opsets_of
from builder.export.onnx_file import check_release
from builder.export.release import OPSET, Release


def merge_heads(files: Mapping[str, Path], path: Path, release: Release) -> None:
    """Writes one file that answers as all of these do, each under its own output's name.

    It computes all of them, whichever are asked for.

    Args:
        files: task -> its head's file.
        path: where to.
        release: what is to load it.

    Raises:
        ExportError: the files do not go together, or the release cannot load one.
    """
    model = merge_models({task: onnx.load(file) for task, file in files.items()}, list(files), path.parent.parent.name)
    check_release(model, path.name, release)
    onnx.save(model, path)


def fits_group(file: Path) -> bool:
    """Whether a head that was exported elsewhere can be put into one file with ours: it uses the same operators."""
    opsets = opsets_of(onnx.load(file, load_external_data=False))
    return opsets.get("") == OPSET and opsets.keys() <= {"", "com.microsoft"}
