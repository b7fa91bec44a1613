"""The proof that what is served answers as what was trained: ONNX files against torch, alone and as a whole chain."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from onetrunk.export.modules import ServedHead
from onetrunk.export.parity_batches import Batch, parity_batches
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, Segment
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

# Of probabilities; a state may be off by this share of its greatest number, and a number in a range of that.
TOLERANCE = 1e-4

Array = NDArray[np.float32]


class ParityError(OneTrunkError):
    """An exported model does not answer as the torch module that it came from.

    Attributes:
        model: the model's name.
        difference: greatest difference found; None where names, axes or shapes differ already.
        tolerance: what was allowed.
    """

    def __init__(self, model: str, what: str, difference: float | None = None, tolerance: float = TOLERANCE) -> None:
        found = "" if difference is None else f": greatest difference {difference:.2e}, allowed {tolerance:.0e}"
        super().__init__(f"{model}: {what}{found}; nothing was published")
        self.model, self.difference, self.tolerance = model, difference, tolerance


@dataclass(frozen=True)
class ServedTask:
    """A head's file and what it must answer as.

    Attributes:
        name: the model's name.
        path: the file.
        spec: what the head answers.
        module: the torch module that it came from; None where somebody else exported it. Its answers must make sense
            then, and are compared with nothing.
    """

    name: str
    path: Path
    spec: HeadSpec
    module: ServedHead | None


@dataclass(frozen=True)
class GroupedFile:
    """Several heads in one file, which must answer as their own files do.

    Attributes:
        name: the model's name.
        path: the file.
        heads: names of the heads' own models.
    """

    name: str
    path: Path
    heads: Sequence[str]


def check_parity(
    trunk: Trunk,
    segments: Mapping[Segment, Path],
    heads: Sequence[ServedTask],
    buckets: tuple[int, ...],
    progress: Callable[[], None] = lambda: None,
    *,
    groups: Sequence[GroupedFile] = (),
    allowed: float | None = None,
) -> dict[str, float]:
    """Checks every model, then the whole chain, on right-padded batches of real text of every bucket, batch 1 and N.

    The models run as they will be served, each on the state that the ONNX segment below it gave. What they are
    compared with is the single-task model: the whole encoder up to the head's tap, and the head with its last layer run
    whole. So a pass says that neither export, nor fold, nor merging changed a prediction.

    Args:
        trunk: the trunk.
        segments: segment -> its file.
        heads: the heads.
        buckets: padded lengths in tokens.
        progress: called after each batch.
        groups: files that hold several of the heads.
        allowed: greatest difference that passes, of heads as a share of their range; by default TOLERANCE, which is for
            fp32 files.

    Returns:
        Model name -> greatest difference found; of the models that there is a torch module for, and of a group from
        its heads' own files.

    Raises:
        ParityError: names, axes, shapes or values differ, or an answer is not finite.
    """
    chain = {segment: open_session(path, segment.name) for segment, path in sorted(segments.items())}
    sessions = {head.name: open_session(head.path, head.name) for head in heads}
    for segment, session in chain.items():
        _check_signature(segment.name, session, segment.inputs, segment.output, [None, None, trunk.width], trunk.width)
    for head in heads:
        dims = [None, *(None if size < 0 else size for size in get_kind(head.spec.kind).dims(head.spec))]
        inputs = (HIDDEN_STATE, ATTENTION_MASK)
        _check_signature(head.name, sessions[head.name], inputs, head.spec.task, dims, trunk.width)
    sessions |= {group.name: open_session(group.path, group.name) for group in groups}

    # A group holds the very files that it is compared with, whatever they compute in.
    together = {group.name for group in groups}
    tolerance = TOLERANCE if allowed is None else allowed
    worst: dict[str, float] = {}
    for batch in parity_batches(trunk, buckets):
        for model, difference in _differences(trunk, chain, heads, sessions, batch, groups).items():
            limit = TOLERANCE if model in together else tolerance
            if not difference <= limit:  # NaN fails too
                other = "its heads'" if model in together else "torch's"
                raise ParityError(model, f"answers differ from {other} on {batch.title}", difference, limit)
            worst[model] = max(worst.get(model, 0.0), difference)
        progress()
    return worst


def _differences(
    trunk: Trunk,
    chain: Mapping[Segment, onnxruntime.InferenceSession],
    heads: Sequence[ServedTask],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    batch: Batch,
    groups: Sequence[GroupedFile],
) -> dict[str, float]:
    reference = trunk.states(
        batch.input_ids, batch.token_type_ids, batch.attention_mask, [segment.stop for segment in chain]
    )
    tensors: dict[str, NDArray[np.int64] | Array] = dict(batch.arrays())
    served: dict[int, Array] = {}
    found: dict[str, float] = {}
    alone: dict[str, tuple[ServedTask, Array]] = {}
    for segment, session in chain.items():
        state = _run(session, segment.name, {name: tensors[name] for name in segment.inputs}, batch)
        tensors[segment.output] = served[segment.stop] = state
        found[segment.name] = _distance(segment.name, state, reference[segment.stop].numpy())
    for head in heads:
        tap = head.spec.tap
        feeds = {HIDDEN_STATE: served[tap], ATTENTION_MASK: tensors[ATTENTION_MASK]}
        scores = _run(sessions[head.name], head.name, feeds, batch)
        alone[head.name] = (head, scores)
        if head.module is None:
            _check_scores(head, scores, batch)
            continue
        with torch.no_grad():
            expected = head.module.forward_whole(reference[tap], batch.attention_mask).numpy()
        found[head.name] = _distance(head.name, scores, expected, head.spec)
    for group in groups:
        members = [alone[name] for name in group.heads]
        feeds = {HIDDEN_STATE: served[members[0][0].spec.tap], ATTENTION_MASK: tensors[ATTENTION_MASK]}
        for head, scores in members:
            together = _run(sessions[group.name], group.name, feeds, batch, head.spec.task)
            difference = _distance(group.name, together, scores, head.spec)
            # Unlike max(), this keeps NaN.
            found[group.name] = float(np.maximum(found.get(group.name, 0.0), difference))
    return found


def open_session(path: Path, model: str) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one file, on the CPU. Raises ParityError where it does not load it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes, one for each status
        raise ParityError(model, f"ONNX Runtime does not load it: {error}") from error


def _check_signature(
    model: str,
    session: onnxruntime.InferenceSession,
    inputs: Sequence[str],
    output: str,
    dims: Sequence[int | None],
    width: int,
) -> None:
    """Compares names, types and dims with those of the config; None in ``dims`` stands for a dynamic axis."""
    found = {tensor.name for tensor in session.get_inputs()}
    if found != set(inputs):
        raise ParityError(model, f"inputs are {sorted(found)}, not {sorted(inputs)}")
    for tensor in session.get_inputs():
        is_state = tensor.name.startswith("hidden")
        if _fixed(tensor.shape[:2]) != [None, None]:
            raise ParityError(model, f"input {tensor.name} has dims {tensor.shape}: batch and tokens must be dynamic")
        if is_state and _fixed(tensor.shape[2:]) not in ([width], [None]):
            raise ParityError(model, f"input {tensor.name} has dims {tensor.shape}: the trunk's width is {width}")
        _check_type(model, tensor, "tensor(float)" if is_state else "tensor(int64)")
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    if set(outputs) != {output}:
        raise ParityError(model, f"outputs are {sorted(outputs)}, not {[output]}")
    # Triton compares the config with what ONNX Runtime infers: a dynamic axis has a name here, a fixed one its size.
    if _fixed(outputs[output].shape) != list(dims):
        expected = ["dynamic" if size is None else size for size in dims]
        raise ParityError(model, f"output {output} has dims {outputs[output].shape}, not {expected}")
    _check_type(model, outputs[output], "tensor(float)")


def _fixed(shape: Sequence[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _check_type(model: str, tensor: onnxruntime.NodeArg, expected: str) -> None:
    if tensor.type != expected:
        raise ParityError(model, f"{tensor.name} is {tensor.type}, not {expected}")


def _check_scores(head: ServedTask, scores: Array, batch: Batch) -> None:
    fault = get_kind(head.spec.kind).fault(scores, head.spec)
    if fault is not None:
        raise ParityError(head.name, f"on {batch.title}: {fault}")


def _run(
    session: onnxruntime.InferenceSession,
    model: str,
    feeds: Mapping[str, NDArray[np.int64] | Array],
    batch: Batch,
    output: str | None = None,
) -> Array:
    try:
        result: Array = session.run([output] if output else None, feeds)[0]
    except Exception as error:  # as in open_session
        raise ParityError(model, f"does not run on {batch.title}: {error}") from error
    # Where any difference is allowed, as of what is reduced, an infinite one would be too.
    if not np.isfinite(result).all():
        raise ParityError(model, f"answers NaN or infinity on {batch.title}")
    return result


def _distance(model: str, found: Array, expected: Array, spec: HeadSpec | None = None) -> float:
    """The greatest difference of scores, as the head's kind sees it; of states, as a share of their greatest number.

    A state has a few features that stand out, in a long text more than in a short one, and floats are exact to a share.
    """
    if found.shape != expected.shape:
        raise ParityError(model, f"answers have shape {found.shape}, torch's {expected.shape}")
    if spec is not None:
        return get_kind(spec.kind).difference(found, expected, spec)
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
