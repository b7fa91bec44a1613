"""Merging ONNX files into one that computes the same: heads of one tap, and the limb below them, into a group.

A model of its own costs every request a step in the ensemble: Triton passes the hidden state on, and another process
wakes up and answers. For folded heads such a step costs as much as the head itself. Heads are merged from their ONNX
files, so that a head can be grouped whoever exported it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import compose, helper

from onetrunk.export.errors import ExportError
from onetrunk.export.release import OPSET, Release
from onetrunk.export.sessions import ask_for_bf16, asks_for_bf16
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import HIDDEN_STATE

# The limit of protobuf for one file, less a margin for the longer names in a merged file.
_MAX_BYTES = 2**31 - 2**24


def merge_heads(
    files: Mapping[str, Path], tap: int, path: Path, release: Release, segment: tuple[str, Path] | None = None
) -> None:
    """Write one file that answers as all of these heads do, each under the name of its own output.

    The file computes all of them, whichever outputs are requested.

    Args:
        files: Task -> the file of its head. All of them, and the segment, ask for bf16, or none does.
        tap: The tap that the heads read.
        path: The file to write.
        release: The Triton release that must be able to load the file.
        segment: The name and the file of the segment whose state the heads read, if the file is to compute it, too. Its
            input is the file's then.

    Raises:
        UserError: The heads are too large for one file.
        ExportError: The files cannot be merged, or the release could not load the result.
    """
    below = dict([segment] if segment is not None else [])
    size = sum(file.stat().st_size for file in (*below.values(), *files.values()))
    if size > _MAX_BYTES:
        raise UserError(
            f"--group-heads: the {len(files)} heads of tap {tap} have {size / 1e9:.2f} GB together, and an ONNX file "
            f"holds {_MAX_BYTES / 1e9:.2f} GB: build without --group-heads, or with fewer heads of this tap"
        )
    parts = {name: onnx.load(file) for name, file in {**below, **files}.items()}
    for name in below:
        _rename_output(parts[name], HIDDEN_STATE)
    model = merge_models(parts, list(files), path.parent.parent.name)
    if all(map(asks_for_bf16, parts.values())):
        ask_for_bf16(model)
    release.check(model, path.name)
    onnx.save(model, path)


def fits_group(file: Path) -> bool:
    """Return whether a head that was exported elsewhere uses the operator sets of the heads exported here."""
    try:
        opsets = _opsets_of(onnx.load(file, load_external_data=False))
    except DecodeError:
        return False  # what is wrong with the file is said once it is to be published
    return opsets.get("") == OPSET and opsets.keys() <= {"", "com.microsoft"}


def merge_models(parts: Mapping[str, onnx.ModelProto], outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """Merge models that share inputs, or of which one reads the outputs of another.

    Inputs and outputs keep their names, and equal names become one tensor. Every other name is prefixed with the name
    of its part.

    Args:
        parts: Name -> model, each after those whose outputs it reads.
        outputs: The outputs of the parts that the merged model keeps.
        name: The name of the merged graph.

    Returns:
        The merged model.

    Raises:
        ExportError: The parts use different versions of an operator set, or no part has one of the outputs.
    """
    prefixed = [
        # Names of tensors and tasks contain no "/".
        compose.add_prefix(part, f"{prefix}/", rename_inputs=False, rename_outputs=False)
        for prefix, part in parts.items()
    ]
    graphs = [part.graph for part in prefixed]
    produced = {tensor.name: tensor for graph in graphs for tensor in graph.output}
    if missing := set(outputs) - produced.keys():
        raise ExportError(f"{name}: no part has the output {', '.join(sorted(missing))}")
    inputs = {tensor.name: tensor for graph in graphs for tensor in graph.input if tensor.name not in produced}
    merged = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        name,
        list(inputs.values()),
        [produced[output] for output in outputs],
        [tensor for graph in graphs for tensor in graph.initializer],
    )
    model = helper.make_model(
        merged,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in _common_opsets(parts).items()],
        ir_version=max(part.ir_version for part in parts.values()),
        functions=[function for part in prefixed for function in part.functions],
    )
    onnx.checker.check_model(model)
    return model


def _rename_output(model: onnx.ModelProto, name: str) -> None:
    """Give a model's only output the name that the next model reads."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if one == output.name else one for one in names]
    output.name = name


def _common_opsets(parts: Mapping[str, onnx.ModelProto]) -> dict[str, int]:
    common: dict[str, int] = {}
    for name, part in parts.items():
        for domain, version in _opsets_of(part).items():
            if common.setdefault(domain, version) != version:
                raise ExportError(
                    f"{name} uses operator set {version} of {domain or 'ai.onnx'}, another part {common[domain]}: "
                    "they cannot be merged into one file"
                )
    return common


def _opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return domain -> version of its operator set. The standard domain is the empty name."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
