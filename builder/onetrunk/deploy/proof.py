"""The proof before a switch: the ensemble that is to be served, under another name, answers as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient, Answers, Row
from onetrunk.export.batches import parity_texts
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import TOKEN_COUNT, TOKEN_WORDS, TRUNCATED
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind

PROOF = "onetrunk_proof"

# As for an export: of probabilities, and of a number in a range as a share of the range. A server that batches these
# rows with others may round differently.
TOLERANCE = 1e-4
# A value that is rounded to few bits may move to the next step by the slightest difference, in every layer.
REDUCED_TOLERANCE = 2e-2

_SHORT, _ROWS = 160, 6


class ProofError(OneTrunkError):
    """An ensemble does not answer as it should."""


@dataclass(frozen=True)
class Allowed:
    """How far answers may deviate from those expected.

    Attributes:
        specs: Output -> its head, whose kind defines the distance between two answers.
        tolerance: The greatest distance allowed; for a number in a range, as a share of the range.
    """

    specs: Mapping[str, HeadSpec]
    tolerance: float = TOLERANCE

    def distance(self, output: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
        """Return the distance between an output's answers and those expected.

        Args:
            output: The output.
            found: The answers. *Shape:* (rows, dims of the head)
            expected: The answers expected. *Shape:* (rows, dims of the head)
        """
        spec = self.specs.get(output)
        if spec is not None:
            return get_kind(spec.kind).answers.difference(found, expected, spec)
        return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")


def smoke_rows() -> list[Row]:
    """Return a few real texts, some of them pairs. They are short: the files were checked at every length before."""
    short = [(text, pair) for text, pair in parity_texts() if len(text) + len(pair) < _SHORT]
    return sorted(short, key=lambda row: bool(row[1]))[:: max(len(short) // _ROWS, 1)]


def prove(
    server: AdminClient,
    ensemble: pb.ModelConfig,
    expected: Mapping[str, NDArray[np.float32]],
    allowed: Allowed | None = None,
) -> Answers:
    """Load an ensemble under the name ``onetrunk_proof``, ask it, and unload it again.

    Args:
        server: The server, on which the ensemble's parts are loaded.
        ensemble: The ensemble's config.
        expected: Output -> the scores that it must return for ``smoke_rows``. *Shape:* (rows, dims of the head)
        allowed: How far they may deviate.

    Returns:
        The ensemble's answers, for all outputs that are scores.

    Raises:
        ProofError: An answer is not finite, or not the one expected.
        OneTrunkError: The ensemble cannot be loaded or asked.
    """
    aside = pb.ModelConfig()
    aside.CopyFrom(ensemble)
    aside.name = PROOF
    for output in aside.output:
        output.label_filename = ""  # label files lie in the folder of the ensemble that is proved
    server.load_ensemble(aside)
    try:
        answers = server.ask(PROOF, smoke_rows(), score_outputs(ensemble))
    finally:
        server.unload(PROOF)
    check_answers(answers, expected, allowed)
    return answers


def check_answers(
    answers: Answers, expected: Mapping[str, NDArray[np.float32]], allowed: Allowed | None = None
) -> None:
    """Check the answers of an ensemble.

    Args:
        answers: Output -> scores. *Shape:* (rows, dims of the head)
        expected: Output -> the scores expected, for any of the outputs. *Shape:* (rows, dims of the head)
        allowed: How far they may deviate.

    Raises:
        ProofError: An answer is not finite, or not the one expected.
    """
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


def score_outputs(ensemble: pb.ModelConfig) -> Sequence[str]:
    """Return the outputs of an ensemble that are scores."""
    return [output.name for output in ensemble.output if output.name not in (TRUNCATED, TOKEN_COUNT, TOKEN_WORDS)]
