"""Checks whether a running Triton answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.protocol.names import ENSEMBLES, INPUT_IDS, MULTITASK, MULTITASK_TOKENS, TEXT

_PROBES: dict[str, dict[str, NDArray[Any]]] = {
    MULTITASK: {TEXT: np.array([[b"Ready?"]], dtype=np.object_)},
    MULTITASK_TOKENS: {INPUT_IDS: np.zeros((1, 2), dtype=np.int64)},
}


class NoAnswerError(ServerError):
    """Triton is up, but a request for all outputs got no usable answer."""


def probe_all_outputs(admin: AdminClient, timeout_s: float) -> None:
    """Ask both ensembles for all of their outputs.

    Raises:
        NoAnswerError: There is no answer, an output is missing, or a number in it is not finite.
    """
    for ensemble, inputs in _PROBES.items():
        try:
            config = admin.config(ensemble)
            answer = admin.infer(ensemble, inputs, timeout_s=timeout_s)
        except OneTrunkError as error:
            raise NoAnswerError(f"{ensemble} gives no answer: {error}") from None
        for output in config.output if config is not None else ():
            value = answer.get(output.name)
            if value is None or value.size == 0 or not np.isfinite(value).all():
                raise NoAnswerError(f"{ensemble} answers {output.name} with {value}, not with finite numbers")


def answers_given(admin: AdminClient) -> int:
    """Return how many requests the ensembles have answered successfully since they were loaded."""
    return sum(
        int(version.inference_stats.success.count) for ensemble in ENSEMBLES for version in admin.statistics(ensemble)
    )
