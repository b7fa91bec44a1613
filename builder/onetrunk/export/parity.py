"""The parity check: exported files answer as the torch modules from which they came, alone and as a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.export.batches import Arrays, parity_batches
from onetrunk.export.chain import Session, open_session
from onetrunk.export.errors import ParityError
from onetrunk.export.foreign import ForeignSession, Signature, Waiting, not_shown
from onetrunk.export.independence import check_independence
from onetrunk.export.onnx_file import ServedHead
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, INPUT_IDS, TOKEN_TYPE_IDS, Segment
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

TOLERANCE = 1e-4
"""The greatest difference of fp32 files: of probabilities, absolute; of a regression, as a share of its range; of a
hidden state, as a share of its greatest number."""

Array = NDArray[np.float32]
Sessions = Mapping[str, Session]


@dataclass(frozen=True)
class HeadFile:
    """A head's file and what it must answer.

    Attributes:
        name: The model's name.
        path: The ONNX file.
        spec: What the head answers, and which hidden state it reads.
        module: The torch module from which it was exported; None for a head that was exported elsewhere. The answers of
            such a head must be plausible, and depend on nothing but the text.
    """

    name: str
    path: Path
    spec: HeadSpec
    module: ServedHead | None


@dataclass(frozen=True)
class GroupFile:
    """Several heads in one file, which must answer as their own files do.

    Attributes:
        name: The model's name.
        path: The ONNX file.
        heads: The names of the heads' own models.
        state: The hidden state that the file reads where it holds the heads' limb; None if it reads that of the heads.
    """

    name: str
    path: Path
    heads: Sequence[str]
    state: str | None = None


def check_parity(
    trunk: Trunk,
    segments: Mapping[Segment, Path],
    heads: Sequence[HeadFile],
    buckets: tuple[int, ...],
    progress: Callable[[], None] = lambda: None,
    *,
    groups: Sequence[GroupFile] = (),
    tolerance: float = TOLERANCE,
    waiting: Waiting = not_shown,
) -> dict[str, float]:
    """Check every model, and with it the whole chain, on right-padded batches of real text in every bucket.

    The models run as they will be served, each on the hidden state from the ONNX segment below it. The reference is the
    single-task model in torch: the whole encoder up to the head's tap, and the head with its last layer run whole. So a
    pass shows that neither export, nor fold, nor merging changed a prediction.

    Args:
        trunk: The trunk.
        segments: Segment -> its file.
        heads: The files of the heads.
        buckets: The padded lengths in tokens.
        progress: Called after each batch, of which there are two per bucket.
        groups: The files that hold several of the heads.
        tolerance: The greatest difference that passes, measured as for `TOLERANCE`. A group must match its heads' own
            files within `TOLERANCE` in any case, since both hold the same computation.
        waiting: Called while a head that was exported elsewhere, or a group that holds one, computes.

    Returns:
        Model name -> greatest difference found: of segments and heads from torch, of groups from their heads' own
        files. Heads that were exported elsewhere are left out.

    Raises:
        ParityError: Names, axes, shapes or values differ, an answer is not finite, or a head that was exported
            elsewhere does not answer in time, or depends on more than its text.
    """
    chain = {segment: open_session(path, segment.name) for segment, path in sorted(segments.items())}
    files: list[HeadFile | GroupFile] = [*heads, *groups]
    foreign = {head.name for head in heads if head.module is None}
    foreign |= {group.name for group in groups if foreign.intersection(group.heads)}
    sessions: dict[str, Session] = {
        file.name: ForeignSession(file.path, file.name, waiting=waiting)
        if file.name in foreign
        else open_session(file.path, file.name)
        for file in files
    }
    for segment, session in chain.items():
        names, dims = segment.inputs(token_types=trunk.reads_types), [None, None, trunk.width]
        _check_signature(segment.name, session, names, segment.output, dims, trunk.width)
    for head in heads:
        dims = [None, *(None if size < 0 else size for size in get_kind(head.spec.kind).output.dims(head.spec))]
        inputs = (HIDDEN_STATE, ATTENTION_MASK)
        _check_signature(head.name, sessions[head.name], inputs, head.spec.task, dims, trunk.width)

    group_names = {group.name for group in groups}
    greatest: dict[str, float] = {}
    for batch in parity_batches(trunk, buckets):
        for model, difference in _differences(trunk, chain, heads, groups, sessions, batch, buckets).items():
            reference, limit = ("its heads'", TOLERANCE) if model in group_names else ("torch's", tolerance)
            if not difference <= limit:  # NaN fails too
                raise ParityError(model, f"answers differ from {reference} on {_title(batch)}", difference, limit)
            greatest[model] = max(greatest.get(model, 0.0), difference)
        progress()
    return greatest


def _differences(
    trunk: Trunk,
    chain: Mapping[Segment, Session],
    heads: Sequence[HeadFile],
    groups: Sequence[GroupFile],
    sessions: Sessions,
    batch: Arrays,
    buckets: Sequence[int],
) -> dict[str, float]:
    """Return the difference of every model that has a reference, on one batch."""
    input_ids, token_type_ids, mask = (
        torch.from_numpy(batch[name]) for name in (INPUT_IDS, TOKEN_TYPE_IDS, ATTENTION_MASK)
    )
    title, tensors = _title(batch), dict(batch)
    reference: dict[str, torch.Tensor] = {}
    for limb in {None, *(head.spec.limb_id for head in heads)}:
        branch = trunk.branch(limb)
        wanted = [one for one in chain if not one.limb] if branch.limb is None else [branch.limb.segment]
        found_states = branch.states(input_ids, token_type_ids, mask, [segment.stop for segment in wanted])
        reference |= {segment.output: found_states[segment.stop] for segment in wanted}
    states: dict[str, Array] = {}
    found: dict[str, float] = {}
    for segment, session in chain.items():
        feeds = {name: tensors[name] for name in segment.inputs(token_types=trunk.reads_types)}
        state = _run(session, segment.name, feeds, segment.output, title)
        tensors[segment.output] = states[segment.output] = state
        found[segment.name] = _state_difference(segment.name, state, reference[segment.output].numpy())

    def scores_of(model: str, head: HeadFile, below: str | None = None) -> Array:
        state = {HIDDEN_STATE: states[head.spec.state]} if below is None else {below: states[below]}
        return _run(sessions[model], model, {**state, ATTENTION_MASK: batch[ATTENTION_MASK]}, head.spec.task, title)

    own: dict[str, tuple[HeadFile, Array]] = {}
    for head in heads:
        scores = scores_of(head.name, head)
        own[head.name] = (head, scores)
        if head.module is None:
            if fault := get_kind(head.spec.kind).answers.fault(scores, head.spec):
                raise ParityError(head.name, f"on {title}: {fault}")
            answers = partial(_answers, sessions[head.name], head)
            check_independence(head.name, head.spec, answers, states[head.spec.state], batch[ATTENTION_MASK], buckets)
            continue
        with torch.no_grad():
            expected = head.module.forward_whole(reference[head.spec.state], mask).numpy()
        found[head.name] = _score_difference(head.name, scores, expected, head.spec)
    for group in groups:
        differences = [
            _score_difference(group.name, scores_of(group.name, head, group.state), scores, head.spec)
            for head, scores in (own[name] for name in group.heads)
        ]
        found[group.name] = float(np.max(differences))  # unlike max(), keeps NaN
    return found


def _title(batch: Arrays) -> str:
    """Return the batch's shape, for messages."""
    return "batch {} x {} tokens".format(*batch[INPUT_IDS].shape)


def _check_signature(
    model: str,
    session: Session,
    inputs: Sequence[str],
    output: str,
    dims: Sequence[int | None],
    width: int,
) -> None:
    """Compare names, types and dims with those of the model's config. None in ``dims`` is a dynamic axis."""
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
    # Triton compares the config with what ONNX Runtime infers: a dynamic axis has a symbol here, a fixed one its size.
    if _fixed(outputs[output].shape) != list(dims):
        expected = ["dynamic" if size is None else size for size in dims]
        raise ParityError(model, f"output {output} has dims {outputs[output].shape}, not {expected}")
    _check_type(model, outputs[output], "tensor(float)")


def _fixed(shape: Sequence[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _check_type(model: str, tensor: Signature, expected: str) -> None:
    if tensor.type != expected:
        raise ParityError(model, f"{tensor.name} is {tensor.type}, not {expected}")


def _run(session: Session, model: str, feeds: Arrays, output: str, title: str) -> Array:
    try:
        result: Array = session.run([output], feeds)[0]
    except ParityError:
        raise
    except Exception as error:  # ONNX Runtime has one exception class per status, without a common base
        raise ParityError(model, f"does not run on {title}: {error}") from error
    # The tolerance of a reduced precision is infinite, and an infinite difference would pass it.
    if not np.isfinite(result).all():
        raise ParityError(model, f"answers NaN or infinity on {title}")
    return result


def _answers(session: Session, head: HeadFile, state: Array, mask: NDArray[np.int64]) -> Array:
    title = "batch {} x {} tokens".format(*mask.shape)
    return _run(session, head.name, {HIDDEN_STATE: state, ATTENTION_MASK: mask}, head.spec.task, title)


def _state_difference(model: str, found: Array, expected: Array) -> float:
    """Return the greatest difference of two hidden states, as a share of the greatest number.

    Floats are exact to a share of themselves, and a state has a few features of large values, in a long text more than
    in a short one.

    *Shape of both:* (batch_size, tokens, width).
    """
    _check_shapes(model, found, expected)
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))


def _score_difference(model: str, found: Array, expected: Array, spec: HeadSpec) -> float:
    """Return the greatest difference of scores, as the head's kind measures it. *Shape of both:* (batch_size, dims)."""
    _check_shapes(model, found, expected)
    return get_kind(spec.kind).answers.difference(found, expected, spec)


def _check_shapes(model: str, found: Array, expected: Array) -> None:
    if found.shape != expected.shape:
        raise ParityError(model, f"answers have shape {found.shape}, torch's {expected.shape}")
