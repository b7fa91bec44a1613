"""Requests and answers as Triton's protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from onetrunk.client.kinds import Reader, reader_of
from onetrunk.client.plan import Batch
from onetrunk.client.tensor import Tensor
from onetrunk.protocol.errors import ServerError
from onetrunk.protocol.names import TOKEN_WORDS, TRUNCATED

Arrays = Mapping[str, NDArray[Any]]
"""Output name -> array, as of response_arrays."""

DTYPES: Mapping[str, str] = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}


class Misfit(ServerError):  # noqa: N818 - named as a state, not a mistake
    """An answer that does not fit the catalogue: the server may have been given other heads meanwhile."""


def request_message(model: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
    """A ``ModelInferRequest`` that asks for these outputs only, so that nothing else has to run."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor in inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.content)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def response_arrays(response: Any) -> dict[str, NDArray[Any]]:
    """Output name -> array of a ``ModelInferResponse``.

    Raises:
        Misfit: an output is not in raw bytes, or of a type or size that it does not name.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise Misfit(f"{len(response.outputs)} outputs came with {len(response.raw_output_contents)} contents")
    arrays: dict[str, NDArray[Any]] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype not in DTYPES:
            raise Misfit(f"output {output.name!r} has type {output.datatype}, expected one of {', '.join(DTYPES)}")
        try:
            arrays[output.name] = np.frombuffer(content, DTYPES[output.datatype]).reshape(tuple(output.shape))
        except ValueError as error:
            raise Misfit(f"output {output.name!r}: {error}") from None
    return arrays


def batch_readers(batch: Batch) -> dict[str, Reader]:
    """Task -> what reads its answers, in the order of the batch's tasks."""
    # Tasks that nothing reads are never asked.
    return {task.name: reader for task in batch.tasks if (reader := reader_of(task))}


def batch_scores(arrays: Arrays, batch: Batch) -> dict[str, NDArray[Any]]:
    """Task -> scores of every row of the batch. *Shape:* (rows, the task's own).

    Raises:
        Misfit: a task is missing or has another number of scores than the catalogue says.
        ServerError: a score is not a finite number.
    """
    scores: dict[str, NDArray[Any]] = {}
    for task, reader in zip(batch.tasks, batch_readers(batch).values(), strict=True):
        if task.name not in arrays:
            raise Misfit(f"the answer lacks task {task.name!r}")
        array = arrays[task.name]
        expected = (len(batch.rows), *reader.shape(task))
        if len(array.shape) != len(expected) or any(
            size not in (None, found) for size, found in zip(expected, array.shape, strict=True)
        ):
            raise Misfit(f"task {task.name!r} came in shape {array.shape}, expected {expected}")
        if not np.isfinite(array).all():
            raise ServerError(f"task {task.name!r} came with scores that are not finite numbers")
        scores[task.name] = array
    return scores


def batch_words(arrays: Arrays, batch: Batch) -> NDArray[np.int64]:
    """Word and place of every token. *Shape:* (rows, tokens, 3).

    Raises:
        Misfit: the output is missing or of another shape.
    """
    array = arrays.get(TOKEN_WORDS)
    if array is None or array.ndim != 3 or (len(array), array.shape[2]) != (len(batch.rows), 3):
        raise Misfit("the answer does not say for every row where its tokens stand")
    return array


def batch_truncated(arrays: Arrays, batch: Batch) -> list[bool]:
    """Row of the batch -> whether its end was cut off.

    Raises:
        Misfit: the output is missing or has another number of rows.
    """
    array = arrays.get(TRUNCATED)
    if array is None or array.size != len(batch.rows):
        raise Misfit("the answer does not say for every row whether it was truncated")
    return [bool(value) for value in array.ravel()]
