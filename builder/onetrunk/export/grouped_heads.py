"""Heads of one tap in one ONNX file: composed from their own files, so that a head is grouped whoever exported it.

A model of its own costs every request a hop: Triton hands the state over, its process wakes up, answers, sleeps. For
folded heads that is as dear as the head itself, and with many heads it is nearly all of the price.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from onetrunk.export.merged import merge_models, opsets_of
from onetrunk.export.onnx_file import check_release
from onetrunk.export.release import OPSET, Release
from onetrunk.protocol.errors import UserError

# protobuf's limit for one file, less what the longer names in it take.
_MOST_BYTES = 2**31 - 2**24


def merge_heads(files: Mapping[str, Path], tap: int, path: Path, release: Release) -> None:
    """Writes one file that answers as all of these do, each under its own output's name.

    It computes all of them, whichever are asked for.

    Args:
        files: task -> its head's file.
        tap: the tap that the heads stand on.
        path: where to.
        release: what is to load it.

    Raises:
        UserError: together they are too large for one file.
        ExportError: the files do not go together, or the release cannot load one.
    """
    size = sum(file.stat().st_size for file in files.values())
    if size > _MOST_BYTES:
        raise UserError(
            f"--group-heads: the {len(files)} heads of tap {tap} have {size / 1e9:.2f} GB together, and an ONNX file "
            f"holds {_MOST_BYTES / 1e9:.2f} GB: build without --group-heads, or with fewer heads of this tap"
        )
    model = merge_models({task: onnx.load(file) for task, file in files.items()}, list(files), path.parent.parent.name)
    check_release(model, path.name, release)
    onnx.save(model, path)


def fits_group(file: Path) -> bool:
    """Whether a head that was exported elsewhere can be put into one file with ours: it uses the same operators."""
    opsets = opsets_of(onnx.load(file, load_external_data=False))
    return opsets.get("") == OPSET and opsets.keys() <= {"", "com.microsoft"}
