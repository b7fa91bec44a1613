"""Several ONNX files in one: nothing is computed otherwise than in the files themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import onnx
from onnx import compose, helper
from onetrunk.export.onnx_file import ExportError
from collections.abc import Mapping
from pathlib import Path
from onetrunk.export.onnx_file import check_release
from onetrunk.export.release import OPSET, Release
from onetrunk.protocol.errors import UserError


def merge_models(parts: Mapping[str, onnx.ModelProto], outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """One model of several that share inputs, or of which one reads what another gives.

    Inputs and outputs keep their names, and those of one name are one tensor. All other names get their part's name in
    front.

    Args:
        parts: name -> model, in an order in which each comes after those whose outputs it reads.
        outputs: which outputs of the parts the model has.
        name: the graph's name.

    Raises:
        ExportError: the parts use different operator sets, or there is no such output.
    """
    prefixed = [
        # No name of a tensor or a task has `/` in it.
        compose.add_prefix(part, f"{prefix}/", rename_inputs=False, rename_outputs=False)
        for prefix, part in parts.items()
    ]
    graphs = [part.graph for part in prefixed]
    made = {tensor.name: tensor for graph in graphs for tensor in graph.output}
    if missing := set(outputs) - made.keys():
        raise ExportError(f"{name}: none of its parts gives {', '.join(sorted(missing))}")
    read = {tensor.name: tensor for graph in graphs for tensor in graph.input if tensor.name not in made}
    merged = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        name,
        list(read.values()),
        [made[output] for output in outputs],
        [tensor for graph in graphs for tensor in graph.initializer],
    )
    model = helper.make_model(
        merged,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in _opsets(parts).items()],
        ir_version=max(part.ir_version for part in parts.values()),
        functions=[function for part in prefixed for function in part.functions],
    )
    onnx.checker.check_model(model)
    return model


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """Domain -> operator set; the standard domain is the empty name."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def _opsets(parts: Mapping[str, onnx.ModelProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, part in parts.items():
        for domain, version in opsets_of(part).items():
            if found.setdefault(domain, version) != version:
                raise ExportError(
                    f"{name} uses operator set {version} of {domain or 'ai.onnx'}, another part {found[domain]}: "
                    "they cannot be put into one file"
                )
    return found


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
