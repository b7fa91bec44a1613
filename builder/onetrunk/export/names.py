"""What models and tensors are called in a repository. docs/contracts.md has the same, for readers."""

from __future__ import annotations

import re
from dataclasses import dataclass

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
HIDDEN_STATE = "hidden_state"
MODEL_FILE = "model.onnx"


@dataclass(frozen=True, order=True)
class Segment:
    """The trunk's layers ``start + 1`` to ``stop``. One that starts at 0 reads token ids and holds the embeddings."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """The model's name, as in ``trunk_03_04``."""
        return f"trunk_{self.start:02d}_{self.stop:02d}"

    @property
    def reads_tokens(self) -> bool:
        """Whether token ids come in, not a hidden state."""
        return self.start == 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input tensors."""
        if self.stop == 0:
            return (INPUT_IDS, TOKEN_TYPE_IDS)  # embeddings alone look at no other token
        if self.reads_tokens:
            return (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
        return (hidden_name(self.start), ATTENTION_MASK)

    @property
    def output(self) -> str:
        """Name of the output tensor."""
        return hidden_name(self.stop)


def segment_named(model: str) -> Segment | None:
    """The segment that a model of this name is; None where the model is something else."""
    match = re.fullmatch(r"trunk_(\d+)_(\d+)", model)
    return Segment(int(match[1]), int(match[2])) if match else None


def cut_trunk(taps: set[int]) -> list[Segment]:
    """The segments for these taps in use, lowest first.

    Every segment ends at a tap in use, so that a request runs the trunk up to its deepest tap and no further. Where
    tap 0 is in use, the next segment reads token ids all the same: embedding them twice costs microseconds, and so a
    segment's name says all about it, whichever taps are in use.
    """
    segments, start = [], 0
    for tap in sorted(taps):
        segments.append(Segment(start, tap))
        start = tap
    return segments


def hidden_name(tap: int) -> str:
    """The tensor that holds the state at a tap, as in ``hidden_04``."""
    return f"hidden_{tap:02d}"


def group_name(tap: int) -> str:
    """The model that holds several heads of one tap, as in ``heads_04``."""
    return f"heads_{tap:02d}"


def head_name(task: str) -> str:
    """The model that is a task's head."""
    return f"head_{task}"
