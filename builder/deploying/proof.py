"""The proof before a switch: the ensemble to be, under another name, answers as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from builder.deploying.live_server import Answers, LiveServer, Row
from builder.errors import OneTrunkError
from builder.export.parity_texts import parity_texts

PROOF = "onetrunk_proof"

# As for an export, of probabilities, and of a number in a range as a share of it; a server that batches our rows with
# others' may round otherwise.
TOLERANCE = 1e-4
# What is rounded to few bits goes to the next step of them at the slightest difference below it, layer for layer.
REDUCED_TOLERANCE = 2e-2

_SHORT, _ROWS = 160, 6


class ProofError(OneTrunkError):
    """An ensemble does not answer as it should."""


def smoke_rows() -> list[Row]:
    """A few real texts, with and without a second one; short, since the files were checked at every length before."""
    short = [(text, pair) for text, pair in parity_texts() if len(text) + len(pair) < _SHORT]
    return sorted(short, key=lambda row: bool(row[1]))[:: max(len(short) // _ROWS, 1)]


def prove(
    server: LiveServer,
    ensemble: pb.ModelConfig,
    expected: Mapping[str, NDArray[np.float32]],
    tolerances: Mapping[str, float] | None = None,
) -> Answers:
    """Loads an ensemble under the name ``onetrunk_proof``, asks it, and unloads it again.

    Args:
        server: where its parts are loaded.
        ensemble: its config.
        expected: output -> the scores that it must give for smoke_rows(). *Shape:* (rows, outputs of the head)
        tolerances: output -> how far its answers may be off; TOLERANCE for one that is not named.

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
    server.load_aside(aside)
    try:
        answers = server.ask(PROOF, smoke_rows(), outputs_of(ensemble))
    finally:
        server.unload(PROOF)
    check_answers(answers, expected, tolerances)
    return answers


def check_answers(
    answers: Answers, expected: Mapping[str, NDArray[np.float32]], tolerances: Mapping[str, float] | None = None
) -> None:
    """Raises ProofError where an answer is not finite, or not the one expected; see prove."""
    for output, scores in answers.items():
        if not np.isfinite(scores).all():
            raise ProofError(f"{output}: answers NaN or infinity")
    for output, wanted in expected.items():
        tolerance = (tolerances or {}).get(output, TOLERANCE)
        found = answers[output]
        distance = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
        if not distance <= tolerance:
            raise ProofError(
                f"{output}: the server's answers are {distance:.1e} from those expected; allowed is {tolerance:.0e}"
            )


def outputs_of(ensemble: pb.ModelConfig) -> Sequence[str]:
    """Its outputs that are scores."""
    return [output.name for output in ensemble.output if output.name != "truncated"]
