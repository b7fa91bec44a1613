"""Names of the models and tensors in a repository. docs/contracts.md describes them for readers."""

from __future__ import annotations

import re
from dataclasses import dataclass

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
HIDDEN_STATE = "hidden_state"
MODEL_FILE = "model.onnx"

TOKENIZER = "tokenizer"
PADDED = {name: f"padded_{name}" for name in (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)}
"""Input of the trunk -> the tokenizer's output that feeds it."""
TRUNCATED = "truncated"
TOKEN_WORDS = "token_words"

MULTITASK = "multitask"
MULTITASK_TOKENS = "multitask_tokens"
# What an ensemble pins is in its config, which is replaced in place: its own version never changes.
ENSEMBLE_VERSION = 1


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
    """Return the segment that a model of this name is, or None if the model is something else."""
    match = re.fullmatch(r"trunk_(\d+)_(\d+)", model)
    return Segment(int(match[1]), int(match[2])) if match else None


def cut_trunk(taps: set[int]) -> list[Segment]:
    """Return the segments that the taps in use need, lowest first.

    Every segment ends at a tap in use, so that a request runs the trunk up to its deepest tap and no further. If tap 0
    is in use, the next segment still reads token ids: embedding them twice costs microseconds, and so a segment's name
    describes it completely, whichever taps are in use.
    """
    segments, start = [], 0
    for tap in sorted(taps):
        segments.append(Segment(start, tap))
        start = tap
    return segments


def hidden_name(tap: int) -> str:
    """Return the tensor of the hidden state at a tap, such as ``hidden_04``."""
    return f"hidden_{tap:02d}"


def group_name(tap: int) -> str:
    """Return the model that holds several heads of one tap, such as ``heads_04``."""
    return f"heads_{tap:02d}"


def head_name(task: str) -> str:
    """Return the model of a task's head, such as ``head_rte``."""
    return f"head_{task}"


def head_task(model: str) -> str | None:
    """Return the task whose head a model of this name is, or None if the model is something else."""
    return model.removeprefix("head_") if model.startswith("head_") else None


def candidate_ensemble(task: str) -> str:
    """Return the ensemble that serves a task's candidate beside the live head, such as ``candidate_rte``."""
    return f"candidate_{task}"


def candidate_output(task: str) -> str:
    """Return the output under which a task's candidate answers, such as ``rte_candidate``."""
    return f"{task}_candidate"
