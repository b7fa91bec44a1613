"""Names of models, tensors, files and headers that builder, server and clients share.

docs/contracts.md describes them for readers. The tokenizer model and the ``onnxruntime`` backend are copied to where
this package may be missing, so they spell the names that they need themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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


_NAME = r"[a-z][a-z0-9_]{0,47}"
_DIGEST = "[0-9a-f]{12}"
_LIMB = re.compile(rf"(?P<name>{_NAME})-(?P<tap>\d{{1,3}})\+(?P<layers>[1-9]\d{{0,2}})@(?P<digest>{_DIGEST})")
_LIMB_LABEL = rf"{_NAME}_{_DIGEST}"


@dataclass(frozen=True, order=True)
class LimbId:
    """The identity of a limb: layers on a tap of the trunk that were trained on several tasks together, and frozen.

    It says where the limb stands, so that a head which names its limb says which layers are below it.

    Attributes:
        name: The limb's name, which has the form of a task's.
        start: The tap of the trunk that it stands on.
        stop: The same, and the number of its layers: the tap of the heads on it.
        digest: The first digits of a hash over its weights and its trunk.
    """

    name: str
    start: int
    stop: int
    digest: str

    @classmethod
    def parse(cls, identity: str) -> LimbId:
        """Read an identity, such as ``pairs-2+1@0123456789ab``.

        Raises:
            ValueError: It is none.
        """
        match = _LIMB.fullmatch(identity)
        if match is None:
            raise ValueError("a limb's identity is its name, tap, layers and hash, such as pairs-2+1@0123456789ab")
        start = int(match["tap"])
        return cls(match["name"], start, start + int(match["layers"]), match["digest"])

    def __str__(self) -> str:
        return f"{self.name}-{self.start}+{self.stop - self.start}@{self.digest}"

    @property
    def label(self) -> str:
        """What models and tensors of the limb are named after. Two limbs of one name, old and new, differ in it."""
        return f"{self.name}_{self.digest}"

    @property
    def segment(self) -> Segment:
        """The limb's layers, as a segment."""
        return Segment(self.start, self.stop, self.label)


@dataclass(frozen=True, order=True)
class Segment:
    """Layers between two taps: of the trunk, or a whole limb.

    A segment of the trunk that starts at 0 reads token ids and holds the embeddings.

    Attributes:
        start: The tap below.
        stop: The tap above.
        limb: The label of the limb; empty for the trunk's own layers.
    """

    start: int
    stop: int
    limb: str = ""

    @property
    def limb_id(self) -> LimbId | None:
        """The identity of the limb; None for the trunk's own layers."""
        if not self.limb:
            return None
        name, _, digest = self.limb.rpartition("_")
        return LimbId(name, self.start, self.stop, digest)

    @property
    def name(self) -> str:
        """The model's name, as in ``trunk_03_04`` or ``limb_pairs_0123456789ab_02_03``."""
        return f"{f'limb_{self.limb}' if self.limb else 'trunk'}_{self.start:02d}_{self.stop:02d}"

    @property
    def reads_tokens(self) -> bool:
        """Whether token ids come in, not a hidden state. A limb on tap 0 reads the embeddings."""
        return self.start == 0 and not self.limb

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
        return hidden_name(self.stop, self.limb)


def segment_named(model: str) -> Segment | None:
    """Return the segment that a model of this name is, or None if the model is something else."""
    match = re.fullmatch(rf"(?:trunk|limb_(?P<limb>{_LIMB_LABEL}))_(?P<start>[0-9]+)_(?P<stop>[0-9]+)", model)
    return Segment(int(match["start"]), int(match["stop"]), match["limb"] or "") if match else None


def segments_below(segments: Iterable[Segment], state: str) -> list[Segment]:
    """Return the segments that have to run for a hidden state, lowest first.

    Args:
        segments: All segments.
        state: The name of the hidden state's tensor.
    """
    by_output = {segment.output: segment for segment in segments}
    below: list[Segment] = []
    while (segment := by_output.get(state)) is not None:
        below.append(segment)
        if segment.reads_tokens:
            break
        state = hidden_name(segment.start)
    return below[::-1]


def cut_trunk(taps: set[int]) -> list[Segment]:
    """Return the segments of the trunk that the taps in use need, lowest first.

    Every segment ends at a tap in use, so that a request runs the trunk up to its deepest tap and no further. If tap 0
    is in use, the next segment still reads token ids: embedding them twice costs microseconds, and so a segment's name
    describes it completely, whichever taps are in use.
    """
    segments, start = [], 0
    for tap in sorted(taps):
        segments.append(Segment(start, tap))
        start = tap
    return segments


def hidden_name(tap: int, limb: str = "") -> str:
    """Return the tensor of the hidden state at a tap, such as ``hidden_04`` or ``hidden_pairs_0123456789ab_03``.

    Args:
        tap: The tap.
        limb: The label of the limb whose state it is; empty for the trunk's.
    """
    return f"hidden_{limb}_{tap:02d}" if limb else f"hidden_{tap:02d}"


def group_name(tap: int, limb: str = "") -> str:
    """Return the model that holds several heads of one tap, such as ``heads_04``; see ``hidden_name``."""
    return hidden_name(tap, limb).replace("hidden", "heads", 1)


def is_group(model: str) -> bool:
    """Return whether a model of this name holds several heads of one tap."""
    return re.fullmatch(rf"heads_(?:{_LIMB_LABEL}_)?\d+", model) is not None


def head_name(task: str) -> str:
    """Return the model of a task's head, such as ``head_rte``."""
    return f"head_{task}"


def head_task(model: str) -> str | None:
    """Return the task whose head a model of this name is, or None if the model is something else."""
    return model.removeprefix("head_") if model.startswith("head_") else None


def is_part(model: str) -> bool:
    """Return whether a model of this name is a segment, a head or a group of heads."""
    return segment_named(model) is not None or head_task(model) is not None or is_group(model)


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


def check_task_name(name: str) -> str:
    """Return the name of a task, which is also the name of its output in the ensembles.

    Raises:
        ValueError: No task can have this name.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            "a task's name has lowercase letters, digits and _, starts with a letter, and is at most 48 characters long"
        )
    if name in TENSORS or re.fullmatch(rf"hidden_(?:{_LIMB_LABEL}_)?\d+", name):
        raise ValueError(f"{name} is the name of a tensor that the ensembles use: choose another name")
    return name
