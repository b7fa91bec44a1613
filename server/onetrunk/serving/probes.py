"""Requests of the server's own, by which it finds out whether its models answer.

A probe of a running server is never cancelled, since Triton 24.10 may not survive that (docs/triton.md): it has no
deadline, and whoever does not want to wait for it any longer leaves it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.protocol.names import ATTENTION_MASK, ENSEMBLES, MULTITASK, TEXT

WORD = b"Ready? "


class NoAnswerError(ServerError):
    """Triton is up, but a request for all outputs got no usable answer."""


def probe_inputs(config: pb.ModelConfig, rows: int = 1, tokens: int = 2) -> Mapping[str, NDArray[Any]]:
    """Return inputs that every model of a repository can answer: a text where it reads texts, else tokens or states.

    Args:
        config: The model's config.
        rows: The number of texts.
        tokens: The length of every text, and the size of every dimension that is free.

    Returns:
        Input -> array. *Shape:* (rows, ...)
    """
    if any(tensor.name == TEXT for tensor in config.input):
        return {TEXT: np.array([[WORD * tokens]] * rows, dtype=np.object_)}
    found = {}
    for tensor in config.input:
        if not tensor.optional:
            shape = [rows, *(size if size > 0 else tokens for size in tensor.dims)]
            dtype = triton_to_np_dtype(pb.DataType.Name(tensor.data_type).removeprefix("TYPE_"))
            # Zero is a token, a type of tokens and a hidden state. A mask of zeros would leave nothing to read.
            found[tensor.name] = np.full(shape, tensor.name == ATTENTION_MASK, dtype=dtype)
    return found


def probe_all_outputs(admin: AdminClient, timeout_s: float, full_batch_tokens: int | None = None) -> None:
    """Ask both ensembles for all of their outputs, before the server is ready.

    Args:
        admin: The connection.
        timeout_s: The time for each answer. A server that needs longer must be given up: see the top of this module.
        full_batch_tokens: The length of the longest texts, if as many of them as a request may hold are asked about.
            So a server that has no memory for them is not ready. None asks about one short text.

    Raises:
        NoAnswerError: There is no answer, an output is missing, or a number in it is not finite.
    """
    for ensemble in ENSEMBLES:
        try:
            config = admin.config(ensemble) or pb.ModelConfig(name=ensemble)
            # Both ensembles have the same parts, so one full batch is enough.
            full = ensemble == MULTITASK and full_batch_tokens is not None
            rows, tokens = (max(config.max_batch_size, 1), full_batch_tokens or 2) if full else (1, 2)
            answer = admin.infer(ensemble, probe_inputs(config, rows, tokens), timeout_s=timeout_s)
        except OneTrunkError as error:
            raise NoAnswerError(f"{ensemble} gives no answer: {error}") from None
        for output in config.output:
            value = answer.get(output.name)
            if value is None or value.size == 0:
                raise NoAnswerError(f"{ensemble} answers {output.name} with nothing")
            if not np.isfinite(value).all():
                found = value[~np.isfinite(value)][0]
                raise NoAnswerError(f"{ensemble} answers {output.name} with {found}, not with finite numbers")
