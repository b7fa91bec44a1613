"""Requests and responses as Triton's protobuf messages."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import ServerError
from onetrunk.protocol.names import TOKEN_COUNT, TOKEN_WORDS, TRUNCATED, WINDOWS

Arrays = Mapping[str, NDArray[Any]]
"""Output -> array."""

DTYPES: Mapping[str, str] = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}
"""Triton's datatype -> numpy's dtype."""


class UnexpectedResponse(ServerError):  # noqa: N818 - named as a state, not a mistake
    """A response that does not fit the catalogue. The server may serve other heads by now."""


@dataclass(frozen=True)
class Tensor:
    """An input tensor of a request.

    Attributes:
        name: The name of the model's input.
        datatype: Triton's name of the data type.
        shape: Rows first.
        content: The values, row-major and little-endian; strings each behind their length in 4 bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


def bytes_tensor(name: str, values: Sequence[bytes]) -> Tensor:
    """Return a column of strings. *Shape:* (rows, 1)."""
    content = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return Tensor(name, "BYTES", (len(values), 1), content)


def int64_tensor(name: str, values: NDArray[np.int64]) -> Tensor:
    """Return a matrix of integers. *Shape:* (rows, tokens)."""
    return Tensor(name, "INT64", values.shape, values.astype("<i8", copy=False).tobytes())


def float_column(name: str, values: Sequence[float]) -> Tensor:
    """Return a column of numbers. *Shape:* (rows, 1)."""
    return Tensor(name, "FP32", (len(values), 1), np.asarray(values, "<f4").tobytes())


def request_message(model: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
    """Return a ``ModelInferRequest`` for these outputs only, so that nothing else has to run."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor in inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.content)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def response_arrays(response: Any) -> dict[str, NDArray[Any]]:
    """Return output -> array of a ``ModelInferResponse``.

    Raises:
        UnexpectedResponse: An output is not in raw bytes, or its type or size is not the one that it names.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise UnexpectedResponse(
            f"{len(response.outputs)} outputs came with {len(response.raw_output_contents)} contents"
        )
    arrays: dict[str, NDArray[Any]] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype not in DTYPES:
            raise UnexpectedResponse(
                f"output {output.name!r} has type {output.datatype}, expected one of {', '.join(DTYPES)}"
            )
        try:
            arrays[output.name] = np.frombuffer(content, DTYPES[output.datatype]).reshape(tuple(output.shape))
        except ValueError as error:
            raise UnexpectedResponse(f"output {output.name!r}: {error}") from None
    return arrays


def task_scores(arrays: Arrays, tasks: Sequence[TaskInfo], rows: int) -> dict[str, NDArray[Any]]:
    """Return task -> scores of every row. *Shape:* (rows, the task's own).

    Args:
        arrays: The outputs of a response.
        tasks: The tasks that were asked.
        rows: The number of rows that were sent.

    Raises:
        UnexpectedResponse: A task is missing, or has another number of scores than the catalogue says.
        ServerError: A score is not a finite number.
    """
    scores: dict[str, NDArray[Any]] = {}
    for task in tasks:
        reader = reader_of(task)
        assert reader is not None, "tasks without a reader are never asked"
        if task.name not in arrays:
            raise UnexpectedResponse(f"the response lacks task {task.name!r}")
        array = arrays[task.name]
        expected = (rows, *reader.shape(task))
        if len(array.shape) != len(expected) or any(
            size not in (None, found) for size, found in zip(expected, array.shape, strict=True)
        ):
            raise UnexpectedResponse(f"task {task.name!r} came in shape {array.shape}, expected {expected}")
        if not np.isfinite(array).all():
            raise ServerError(f"task {task.name!r} came with scores that are not finite numbers")
        scores[task.name] = array
    return scores


def token_words(arrays: Arrays, rows: int) -> NDArray[np.int64]:
    """Return the word, first character and last character of every token. *Shape:* (rows, tokens, 3).

    Raises:
        UnexpectedResponse: The output is missing or of another shape.
    """
    array = arrays.get(TOKEN_WORDS)
    if array is None or array.ndim != 3 or (len(array), array.shape[2]) != (rows, 3):
        raise UnexpectedResponse("the response does not say for every row where its tokens are in the text")
    return array


def truncated_rows(arrays: Arrays, rows: int) -> list[bool]:
    """Return row -> whether its end was cut off.

    Raises:
        UnexpectedResponse: The output is missing or has another number of rows.
    """
    array = arrays.get(TRUNCATED)
    if array is None or array.size != rows:
        raise UnexpectedResponse("the response does not say for every row whether it was truncated")
    return [bool(value) for value in array.ravel()]


def token_counts(arrays: Arrays, rows: int) -> list[int | None]:
    """Return row -> the number of its tokens that were read.

    Raises:
        UnexpectedResponse: The output is missing or has another number of rows.
    """
    array = arrays.get(TOKEN_COUNT)
    if array is None or array.size != rows:
        raise UnexpectedResponse("the response does not say for every row how many tokens were read")
    return [int(value) for value in array.ravel()]


def window_places(arrays: Arrays, rows: int) -> list[list[tuple[int, int, int, int]]]:
    """Return row -> the first character of each window and the one after its last, in the text and in the second text.

    Raises:
        UnexpectedResponse: The output is missing or of another shape.
    """
    array = arrays.get(WINDOWS)
    if array is None or array.ndim != 3 or (len(array), array.shape[2]) != (rows, 4):
        raise UnexpectedResponse("the response does not say for every row where its windows are")
    return [[(a, b, c, d) for a, b, c, d in places if a >= 0] for places in array.tolist()]
