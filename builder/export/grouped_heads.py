"""Heads of one tap in one ONNX file: composed from their own files, so that a head is grouped whoever exported it.

A model of its own costs every request a hop: Triton hands the state over, its process wakes up, answers, sleeps. For
folded heads that is as dear as the head itself, and with many heads it is nearly all of the price.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import compose, helper

from builder.export.names import ATTENTION_MASK, HIDDEN_STATE
from builder.export.onnx_file import ExportError, check_release
from builder.export.release import OPSET, Release


def merge_heads(files: Mapping[str, Path], path: Path, release: Release) -> None:
    """Writes one file that answers as all of these do, each under its own output's name.

    Nothing is computed otherwise than in the heads' own files; a run for some of the outputs computes these alone
    where the runtime is told so (``only_execute_path_to_fetches``).

    Args:
        files: task -> its head's file.
        path: where to.
        release: what is to load it.

    Raises:
        ExportError: the files do not go together: two of them have different operator sets of one domain.
    """
    parts = {task: onnx.load(file) for task, file in files.items()}
    # Names inside a file are of no meaning outside of it: `/` keeps them apart, since no task has one in its name.
    prefixed = [
        compose.add_prefix(part, f"{task}/", rename_inputs=False, rename_outputs=False) for task, part in parts.items()
    ]
    graphs = [part.graph for part in prefixed]
    inputs = {tensor.name: tensor for graph in graphs for tensor in graph.input}
    merged = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        path.parent.parent.name,
        [inputs[name] for name in (HIDDEN_STATE, ATTENTION_MASK) if name in inputs],
        [tensor for graph in graphs for tensor in graph.output],
        [tensor for graph in graphs for tensor in graph.initializer],
    )
    model = helper.make_model(
        merged,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in _opsets(parts).items()],
        ir_version=max(part.ir_version for part in parts.values()),
        functions=[function for part in prefixed for function in part.functions],
    )
    onnx.checker.check_model(model)
    check_release(model, path.name, release)
    onnx.save(model, path)


def fits_group(file: Path) -> bool:
    """Whether a head that was exported elsewhere can be put into one file with ours: it uses the same operators."""
    model = onnx.load(file, load_external_data=False)
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    return opsets.get("") == OPSET and opsets.keys() <= {"", "com.microsoft"}


def _opsets(parts: Mapping[str, onnx.ModelProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for task, part in parts.items():
        for entry in part.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if found.setdefault(domain, entry.version) != entry.version:
                raise ExportError(
                    f"head {task} uses operator set {entry.version} of {domain or 'ai.onnx'}, another head of its tap "
                    f"{found[domain]}: they cannot be grouped"
                )
    return found
