"""The proof before a switch: the ensemble to be, under another name, answers as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient, Answers, Row
from onetrunk.export.batches import parity_texts
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import TOKEN_WORDS, TRUNCATED
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

PROOF = "onetrunk_proof"

# As for an export, of probabilities, and of a number in a range as a share of it; a server that batches our rows with
# others' may round otherwise.
TOLERANCE = 1e-4
# What is rounded to few bits goes to the next step of them at the slightest difference below it, layer for layer.
REDUCED_TOLERANCE = 2e-2

_SHORT, _ROWS = 160, 6


class ProofError(OneTrunkError):
    """An ensemble does not answer as it should."""


@dataclass(frozen=True)
class Allowed:
    """How far answers may be off.

    Attributes:
        specs: output -> its head, whose kind says how far two answers are apart.
        tolerance: what is allowed of that; of a number in a range, as a share of the range.
    """

    specs: Mapping[str, HeadSpec]
    tolerance: float = TOLERANCE

    def distance(self, output: str, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
        """How far an answer is from what was expected. *Shape of both:* (rows, dims of the head)."""
        spec = self.specs.get(output)
        if spec is not None:
            return get_kind(spec.kind).difference(found, wanted, spec)
        return float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")


def smoke_rows() -> list[Row]:
    """A few real texts, with and without a second one; short, since the files were checked at every length before."""
    short = [(text, pair) for text, pair in parity_texts() if len(text) + len(pair) < _SHORT]
    return sorted(short, key=lambda row: bool(row[1]))[:: max(len(short) // _ROWS, 1)]


def prove(
    server: AdminClient,
    ensemble: pb.ModelConfig,
    expected: Mapping[str, NDArray[np.float32]],
    allowed: Allowed | None = None,
) -> Answers:
    """Loads an ensemble under the name ``onetrunk_proof``, asks it, and unloads it again.

    Args:
        server: where its parts are loaded.
        ensemble: its config.
        expected: output -> the scores that it must give for smoke_rows(). *Shape:* (rows, dims of the head)
        allowed: how far they may be off.

    Returns:
        What it answered, for all its outputs but ``truncated``.

    Raises:
        ProofError: an answer is not finite, or not the one expected.
        OneTrunkError: it cannot be loaded or asked.
    """
    aside = pb.ModelConfig()
    aside.CopyFrom(ensemble)
    aside.name = PROOF
    for output in aside.output:
        output.label_filename = ""  # the files lie in the folder of the ensemble that it stands for
    server.load_ensemble(aside)
    try:
        answers = server.ask(PROOF, smoke_rows(), outputs_of(ensemble))
    finally:
        server.unload(PROOF)
    check_answers(answers, expected, allowed)
    return answers


def check_answers(
    answers: Answers, expected: Mapping[str, NDArray[np.float32]], allowed: Allowed | None = None
) -> None:
    """Raises ProofError where an answer is not finite, or not the one expected; see prove."""
    for output, scores in answers.items():
        if not np.isfinite(scores).all():
            raise ProofError(f"{output}: answers NaN or infinity")
    allowed = allowed or Allowed({})
    for output, wanted in expected.items():
        distance = allowed.distance(output, answers[output], wanted)
        if not distance <= allowed.tolerance:
            raise ProofError(
                f"{output}: the server's answers are {distance:.1e} from those expected; allowed is "
                f"{allowed.tolerance:.0e}"
            )


def outputs_of(ensemble: pb.ModelConfig) -> Sequence[str]:
    """Its outputs that are scores."""
    return [output.name for output in ensemble.output if output.name not in (TRUNCATED, TOKEN_WORDS)]
