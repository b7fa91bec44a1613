"""Names of models, tensors, files and headers that builder, server and clients share.

docs/contracts.md describes them for readers. The tokenizer model and the ``onnxruntime`` backend are copied to where
this package may be missing, so they spell the names that they need themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Models.
TOKENIZER = "tokenizer"
MULTITASK = "multitask"
"""The ensemble that reads texts."""
MULTITASK_TOKENS = "multitask_tokens"
"""The ensemble that reads token ids."""
ENSEMBLES = (MULTITASK, MULTITASK_TOKENS)
# What an ensemble pins is in its config, which is replaced in place: its own version never changes.
ENSEMBLE_VERSION = 1
CHECK_ID = "onetrunk-check"
"""The id of requests that only find out whether models answer. The tokenizer and the heads do not count them."""

# Tensors.
TEXT = "text"
TEXT_PAIR = "text_pair"
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
PADDED = {name: f"padded_{name}" for name in (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)}
"""Input of the trunk -> the tokenizer's output that feeds it."""
TRUNCATED = "truncated"
TOKEN_WORDS = "token_words"
TOKEN_COUNT = "token_count"
WINDOWS = "windows"
"""Where the windows of a long text are: an output of the tokenizer alone, and of no ensemble."""
WINDOW_OVERLAP = "window_overlap"
HIDDEN_STATE = "hidden_state"

# Files of a repository.
CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.onnx"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
"""The manifest's signature, if a key was given."""
DEPLOYMENTS_LOG = "deployments.jsonl"
STAGING = ".staging"
"""The folder in which a transaction stages its files."""
LOCK = ".lock"
"""The empty file that the writer of a repository, or of a store of releases, holds. It is gone when nobody writes."""
COMMIT = "commit.json"
"""The file in `STAGING` that decides a transaction. It stays until every file has been moved in."""

ONETRUNK_PARAMETER = "onetrunk"
"""The parameter of an ensemble's config that describes its tasks (`onetrunk.protocol.ensemble_info`)."""

# Triton's restricted endpoints.
ADMIN_KEY_VARIABLE = "ONETRUNK_ADMIN_KEY"
ADMIN_KEY_FILE_VARIABLE = "ONETRUNK_ADMIN_KEY_FILE"
ADMIN_HEADER = "onetrunk-admin-key"
"""The header over HTTP."""
ADMIN_GRPC_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"
"""The header over gRPC, where Triton expects a prefix."""

DRIFT_METHOD = "/onetrunk.Front/Drift"
"""The gRPC method of the front that returns the drift of all tasks as JSON."""
TRIALS_METHOD = "/onetrunk.Front/Trials"
"""The gRPC method of the front that returns as JSON how the candidates do that answer a share of the traffic."""


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

    def inputs(self, *, token_types: bool) -> tuple[str, ...]:
        """Return the names of the input tensors.

        Args:
            token_types: Whether the trunk reads token types. Triton refuses an input that a file does not have.
        """
        types = (TOKEN_TYPE_IDS,) if token_types else ()
        if self.stop == 0:
            return (INPUT_IDS, *types)  # embeddings alone look at no other token
        if self.reads_tokens:
            return (INPUT_IDS, ATTENTION_MASK, *types)
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


def group_tap(model: str) -> int | None:
    """Return the tap whose heads a model of this name holds, or None if the model is something else."""
    match = re.fullmatch(r"heads_(\d+)", model)
    return int(match[1]) if match else None


def head_name(task: str) -> str:
    """Return the model of a task's head, such as ``head_rte``."""
    return f"head_{task}"


def head_task(model: str) -> str | None:
    """Return the task whose head a model of this name is, or None if the model is something else."""
    return model.removeprefix("head_") if model.startswith("head_") else None


def is_part(model: str) -> bool:
    """Return whether a model of this name is a segment, a head or a group of heads."""
    return any(found is not None for found in (segment_named(model), head_task(model), group_tap(model)))


def candidate_ensemble(task: str) -> str:
    """Return the ensemble that serves a task's candidate beside the live head, such as ``candidate_rte``."""
    return f"{_CANDIDATE}{task}"


def is_candidate_ensemble(model: str) -> bool:
    """Return whether a model is the ensemble of a candidate."""
    return model.startswith(_CANDIDATE)


def candidate_output(task: str) -> str:
    """Return the output under which a task's candidate answers, such as ``rte_candidate``."""
    return f"{task}_candidate"


TENSORS = frozenset(
    {
        TEXT,
        TEXT_PAIR,
        TRUNCATED,
        TOKEN_WORDS,
        TOKEN_COUNT,
        WINDOWS,
        WINDOW_OVERLAP,
        HIDDEN_STATE,
        *PADDED,
        *PADDED.values(),
    }
)
"""The tensors of the ensembles and their parts, apart from the hidden states at the taps."""

_CANDIDATE = "candidate_"
_TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


def check_task_name(name: str) -> str:
    """Return the name of a task, which is also the name of its output in the ensembles.

    Raises:
        ValueError: No task can have this name.
    """
    if not _TASK_NAME.fullmatch(name):
        raise ValueError(
            "a task's name has lowercase letters, digits and _, starts with a letter, and is at most 48 characters long"
        )
    if name in TENSORS or re.fullmatch(r"hidden_\d+", name):
        raise ValueError(f"{name} is the name of a tensor that the ensembles use: choose another name")
    return name
