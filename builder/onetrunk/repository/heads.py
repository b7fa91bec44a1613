"""Where heads come from: bundles that were trained here, and ONNX files that were exported elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from onetrunk.export.exported_head import HEAD_TOML, ExportedHead, read_exported_head
from onetrunk.export.release import IR_VERSION, OPSET
from onetrunk.nn.bundle import WEIGHTS, Bundle, load_bundle
from onetrunk.nn.embedding import DEFAULT_TASK, EmbeddingTap, embedding_spec
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError, did_you_mean
from onetrunk.protocol.head_json import HEAD_JSON, LIMB_JSON, LongTexts
from onetrunk.protocol.manifest import Dtype, Precision
from onetrunk.protocol.names import Segment, segments_below
from onetrunk.protocol.reading import sha256_file
from onetrunk.repository.versions import EXPORT_FORMAT, reduction_source, source_hash
from onetrunk.tasks.head_spec import HeadSpec, find_bundles
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.embedding import EMBEDDING

_SHOWN = 5
_HEADS = Path("heads")

HeadSource = Bundle | ExportedHead
"""A head that was trained here, or one that was exported elsewhere."""


def select_heads(
    heads: Path,
    tasks: Sequence[str] | None,
    trunk: Trunk,
    embed: EmbeddingTap | None = None,
    embed_long_texts: LongTexts = "cut",
) -> dict[str, HeadSource]:
    """Load the heads of some tasks.

    Args:
        heads: The folder of bundles.
        tasks: The tasks; None for every head in the folder.
        trunk: The trunk on which the heads must stand.
        embed: The tap of an embedding to add; None for none.
        embed_long_texts: What the embedding reads of a text that is longer than the server's longest.

    Returns:
        Task -> head, sorted by task.

    Raises:
        UserError: There is no head for a task, a head is broken or belongs to another trunk, or a head has the name of
            the embedding.
    """
    folders = _find_heads(heads)
    if not folders:
        raise UserError(f"{heads}: no head in it; train one with train-head, or give --heads")
    for task in tasks or ():
        if task not in folders:
            hint = did_you_mean(task, folders)
            raise UserError(f"no head for task {task!r}{hint} in {heads}; there are: {', '.join(folders)}")
    found = {task: load_head(folders[task], trunk) for task in tasks or folders}
    if embed is not None:
        if DEFAULT_TASK in found:
            raise UserError(
                f"--embed: {folders[DEFAULT_TASK]} has this name: leave --embed out, or name the other tasks in --tasks"
            )
        found[DEFAULT_TASK] = make_embedding(trunk, embed, embed_long_texts)
    return dict(sorted(found.items()))


def make_embedding(trunk: Trunk, tap: EmbeddingTap, long_texts: LongTexts = "cut") -> Bundle:
    """Return a bundle that is in no folder: an embedding is made of the trunk alone.

    Raises:
        UserError: The trunk has no such tap.
    """
    return Bundle(Path(DEFAULT_TASK), embedding_spec(trunk, tap, long_texts), {})


def long_text_notes(specs: Sequence[HeadSpec], max_length: int) -> list[str]:
    """Return what a user may not expect of texts that are longer than the server's longest.

    Args:
        specs: The heads.
        max_length: The longest text that the server reads at once, in tokens.
    """
    cut = [spec for spec in specs if spec.long_texts == "cut"]
    notes = []
    # A trunk's embedding is trained on nothing, and its length is the trunk's own.
    trained = [spec for spec in cut if spec.kind != EMBEDDING.name and spec.max_length > max_length]
    if trained:
        longest = max(spec.max_length for spec in trained)
        notes.append(
            f"texts beyond {max_length:,} tokens are cut, and {_names(trained)} learned from up to {longest:,}: give "
            f"--max-length {longest}"
        )
    if any(spec.kind == EMBEDDING.name for spec in cut):
        notes.append(
            f"embeddings are those of the first {max_length:,} tokens of a text, and `truncated` says where there were "
            "more: --embed-long-texts windows embeds all of it"
        )
    others = [spec for spec in cut if spec.kind != EMBEDDING.name and spec not in trained]
    if others and len(cut) < len(specs):
        notes.append(f"long texts are read in windows, but for {_names(others)}: of these, beginnings are read")
    return notes


def _names(specs: Sequence[HeadSpec]) -> str:
    shown = ", ".join(spec.task for spec in specs[:_SHOWN])
    return shown + (f" and {len(specs) - _SHOWN} more" if len(specs) > _SHOWN else "")


def _find_heads(heads: Path) -> dict[str, Path]:
    exported = [path.parent for path in heads.glob(f"*/{HEAD_TOML}") if not path.parent.name.startswith(".")]
    return {folder.name: folder for folder in sorted([*find_bundles(heads), *exported])}


def load_head(folder: Path, trunk: Trunk, *, any_folder: bool = False) -> HeadSource:
    """Load a bundle, or a head that was exported elsewhere, and check that it stands on a trunk.

    Args:
        folder: The head's folder.
        trunk: The trunk.
        any_folder: Whether the folder may have another name than the task.

    Raises:
        UserError: The folder holds no head, or the head is broken or belongs to another trunk.
    """
    head: HeadSource
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder{_what_is_meant(folder)}")
    if not folder.name:
        folder = folder.resolve()  # `.` has no name that could be compared with the task's
    if (folder / HEAD_TOML).exists():
        head = read_exported_head(folder, trunk, any_folder=any_folder)
    elif (folder / HEAD_JSON).exists():
        head = load_bundle(folder, any_folder=any_folder, trunk=trunk)
    else:
        raise UserError(f"{folder}: {_what_it_is(folder)}")
    head.check_trunk(trunk)
    return head


def _what_is_meant(folder: Path) -> str:
    """Return what may be meant by a folder that is not there, after the words that it is not."""
    is_name = len(folder.parts) == 1
    parent = _HEADS if is_name else folder.parent
    found = _find_heads(parent) if parent.is_dir() else {}
    if is_name and folder.name in found:
        return f": give {found[folder.name]}"
    hint = did_you_mean(folder.name, found)
    return f"{hint}: heads are in {_HEADS}/" if is_name and found else hint


def _what_it_is(folder: Path) -> str:
    """Return what a folder is that is no head, and what to give instead."""
    if (folder / LIMB_JSON).exists():
        return "it is a limb, not a head: give the folder of a head, which finds its limb by itself"
    within = list(_find_heads(folder).values())
    instead = f"one of the heads in it, such as {within[0]}" if within else "a folder that train-head wrote"
    return (
        f"neither a bundle ({HEAD_JSON}) nor a head that was exported elsewhere ({HEAD_TOML}) is in it: give {instead}"
    )


def head_dtype(head: HeadSource, precision: Precision) -> Dtype:
    """Return the dtype of a head's file in a precision.

    A head that was exported elsewhere is taken as it is, and one without weights has nothing to reduce. OpenVINO, which
    computes in bf16, takes no loops.
    """
    kind = get_kind(head.spec.kind)
    as_it_is = isinstance(head, ExportedHead) or not kind.has_weights
    loops = precision.heads == "bf16" and kind.output.has_loops(head.spec)
    return "fp32" if as_it_is or loops else precision.heads


def is_reduced_task(head: HeadSource, segments: Iterable[Segment], precision: Precision) -> bool:
    """Return whether a head, or a segment below it, computes in less than fp32."""
    below = segments_below(segments, head.spec.state)
    return head_dtype(head, precision) != "fp32" or any(precision.of_segment(one) != "fp32" for one in below)


def head_source(head: HeadSource, dtype: Dtype = "fp32") -> str:
    """Return a hash over everything that a head's file and its config are made from."""
    if isinstance(head, ExportedHead):
        return source_hash("exported", _served_spec(head.spec), head.spec.trunk, sha256_file(head.file))
    weights = sha256_file(head.folder / WEIGHTS) if head.weights else ""
    return source_hash(
        EXPORT_FORMAT, OPSET, IR_VERSION, head.spec.trunk, _served_spec(head.spec), weights, *reduction_source(dtype)
    )


def _served_spec(spec: HeadSpec) -> str:
    """Return the fields on which serving depends: a head that was retrained to equal weights is the same head."""
    fields = {"task", "kind", "form", "labels", "range", "tap", "layers", "query", "metric"}
    # Left out if empty, so that the hash of a head without them does not depend on their existence.
    fields |= {name for name in ("options", "fitted") if getattr(spec, name)}
    if spec.long_texts == "windows":
        fields |= {"long_texts", "window_overlap"}
    if spec.limb is not None:
        fields.add("limb")
    return spec.model_dump_json(include=fields)
