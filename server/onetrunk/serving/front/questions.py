"""What an inference request asks, read from either form of the protocol, and what of it is refused.

Only what Triton would take badly is checked here: sizes, and requests that it answers with nonsense or with a message
that helps nobody. Everything else is Triton's to judge.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from onetrunk.protocol.names import ENSEMBLES, TEXT, TEXT_PAIR
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.body import check_parts
from onetrunk.serving.front.settings import Limits

CLASSIFICATION = "classification"
"""The parameter of an output that asks for labels in place of scores."""

# More than all outputs of hundreds of tasks.
MOST_FIELDS = 4096
# The name that a client gives a request. Triton repeats it in the answer.
MAX_ID_CHARACTERS = 4096

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Column:
    """An input of a request.

    Attributes:
        name: The input's name.
        rows: Its rows, as its shape says.
        too_long: The number and the size in bytes of the first text that is too long, or None.
    """

    name: str
    rows: int
    too_long: tuple[int, int] | None = None


@dataclass(frozen=True)
class Question:
    """An inference request.

    Attributes:
        model: The model that is asked.
        columns: The inputs.
        classified: The outputs whose labels are asked for.
        outputs: The outputs that are asked for; empty if that is all of them.
        pairs: Row -> 1 if it has a second text, 0 if it has none; None if that was not read, or is not known, as of
            token ids.
    """

    model: str
    columns: Sequence[Column]
    classified: Sequence[str]
    outputs: Sequence[str] = ()
    pairs: bytes | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return max((column.rows for column in self.columns), default=0)


def read_message(request: Any, limits: Limits) -> Question:
    """Read a ``ModelInferRequest``.

    Raises:
        RefusedError: Its id is too long.
    """
    _check_id(request.id)
    columns = []
    for index, tensor in enumerate(request.inputs):
        too_long = None
        if tensor.datatype == "BYTES":
            content = _raw(request, index)
            # In a content that is no longer than a text may be, none is too long.
            if content is None or len(content) > limits.max_text_bytes:
                too_long = _first_too_long(_message_sizes(request, index), limits)
        columns.append(Column(tensor.name, tensor.shape[0] if tensor.shape else 0, too_long))
    classified = [output.name for output in request.outputs if CLASSIFICATION in output.parameters]
    outputs = [output.name for output in request.outputs]
    return Question(request.model_name, columns, classified, outputs, _pairs(request, limits))


def _raw(request: Any, index: int) -> bytes | None:
    """Return the content of an input of a ``ModelInferRequest`` if it is raw."""
    return request.raw_input_contents[index] if index < len(request.raw_input_contents) else None


def _message_sizes(request: Any, index: int) -> Iterable[int]:
    """Return the sizes of the texts of an input of a ``ModelInferRequest``."""
    content = _raw(request, index)
    return _raw_sizes(content) if content is not None else map(len, request.inputs[index].contents.bytes_contents)


def _pairs(request: Any, limits: Limits) -> bytes | None:
    """Return row -> 1 if it has a second text, 0 if it has none; None if the request has no texts."""
    places = {tensor.name: index for index, tensor in enumerate(request.inputs)}
    if TEXT not in places:
        return None
    place = places.get(TEXT_PAIR, places[TEXT])
    sizes = islice(_message_sizes(request, place), limits.max_texts)
    return bytes(TEXT_PAIR in places and size > 0 for size in sizes)


def check_fields(request: bytes) -> None:
    """Check a serialized ``ModelInferRequest`` before it is parsed: two bytes can become a message of a hundred.

    Raises:
        RefusedError: It has too many fields, or is no message.
    """
    at = 0
    for _ in range(MOST_FIELDS):
        if at >= len(request):
            return
        key, at = _varint(request, at)
        wire_type = key & 7
        if wire_type == 0:
            _, at = _varint(request, at)
        elif wire_type == 2:
            size, at = _varint(request, at)
            at += size
        else:
            at += {1: 8, 5: 4}.get(wire_type, len(request))
    raise RefusedError(413, f"the request has more than {MOST_FIELDS:,} inputs, outputs and parameters")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number in protobuf's encoding, and where it ends."""
    number = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise RefusedError(400, "the request is not a ModelInferRequest")


def read_json(model: str, body: bytes, header_bytes: int | None, limits: Limits) -> Question:
    """Read a request in JSON, behind which values in binary form may stand.

    Args:
        model: The model in the path.
        body: The whole body.
        header_bytes: The size of the JSON, or None if the body is nothing else.
        limits: The limits.

    Raises:
        RefusedError: It is not an object in JSON, or not one with inputs, or its id is too long.
    """
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise RefusedError(400, f"Inference-Header-Content-Length is {header_bytes}, and the body {len(body)} bytes")
    check_parts(body[:header_bytes])
    try:
        request = json.loads(body[:header_bytes], parse_constant=_no_number, object_pairs_hook=_Objects().take)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the request is not JSON: {str(error)[:200]}") from None
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if inputs is None or not _objects(inputs):
        raise RefusedError(
            400,
            'the request has no list of inputs: it must be an object such as {"inputs": [{"name": "text", '
            '"datatype": "BYTES", "shape": [1, 1], "data": ["A text."]}]}',
        )
    _check_id(request.get("id"))
    given = request.get("outputs") or []
    outputs = given if _objects(given) else []
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if any(not isinstance(tensor.get("name"), str) for tensor in tensors):
            raise RefusedError(400, f'one of the {what} has no name: give each one, such as {{"name": "text"}}')
    columns, at = [], header_bytes or len(body)
    for tensor in inputs:
        size = _parameter(tensor, "binary_data_size")
        too_long = None
        if isinstance(size, int) and size >= 0:
            if tensor.get("datatype") == "BYTES":
                content = body[at : at + size]
                too_long = _first_too_long(_raw_sizes(content), limits) if size > limits.max_text_bytes else None
            at += size
        elif tensor.get("datatype") == "BYTES" and "data" in tensor:
            too_long = _first_too_long(_text_sizes(str(tensor.get("name")), tensor.get("data")), limits)
        columns.append(Column(str(tensor.get("name")), _rows(tensor), too_long))
    classified = [str(output.get("name")) for output in outputs if _parameter(output, CLASSIFICATION) is not None]
    return Question(model, columns, classified, [str(output.get("name")) for output in outputs])


def _check_id(name: Any) -> None:
    if isinstance(name, str) and len(name) > MAX_ID_CHARACTERS:
        raise RefusedError(
            413, f"the id has {len(name):,} characters, and at most {MAX_ID_CHARACTERS:,} are allowed: shorten it"
        )


def check_sizes(question: Question, limits: Limits) -> None:
    """Check a request before anything else is done with it.

    Raises:
        RefusedError: It has too many texts or too long ones, or a second text without the first.
    """
    for column in question.columns:
        if column.rows > limits.max_texts:
            raise RefusedError(
                413, f"{column.name} has {column.rows:,} rows, and a request at most {limits.max_texts:,}: send several"
            )
        if column.too_long is not None:
            row, size = column.too_long
            raise RefusedError(
                413,
                f"{column.name} {row}: {size:,} bytes, and at most {limits.max_text_bytes:,} are allowed: shorten it",
            )
    names = {column.name for column in question.columns}
    if question.model in ENSEMBLES and TEXT_PAIR in names and TEXT not in names:
        raise RefusedError(400, f"{TEXT_PAIR} without {TEXT}: send the first text of each pair as {TEXT}")


def check_texts(texts: Sequence[str], pairs: Sequence[str | None], limits: Limits) -> int:
    """Check the texts of a request in JSON.

    Returns:
        The size of all of them in bytes.

    Raises:
        RefusedError: There are too many, or one is too long.
    """
    if not texts:
        raise RefusedError(400, "texts is empty: give at least one text")
    columns, total = [], 0
    for name, values in ((TEXT, texts), (TEXT_PAIR, pairs)):
        sizes = [_utf8_bytes(value) if value is not None else 0 for value in values]
        columns.append(Column(name, len(values), _first_too_long(sizes, limits)))
        total += sum(sizes)
    check_sizes(Question("", columns, ()), limits)
    return total


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_windows(windows: int, size: int, limits: Limits) -> None:
    """Check the windows of a request's long texts, which are to the server what texts are.

    Args:
        windows: Their number.
        size: Their size in bytes.
        limits: The limits.

    Raises:
        RefusedError: There are too many, or they are too large.
    """
    if windows > limits.max_texts:
        raise RefusedError(
            413,
            f"the long texts are {windows:,} more windows, and a request may have {limits.max_texts:,}: send fewer of "
            "them at a time",
        )
    if size > limits.max_body_bytes:
        raise RefusedError(
            413,
            f"the windows of the long texts are {size:,} bytes, and a request may have {limits.max_body_bytes:,}: send "
            "fewer of them at a time",
        )


def _raw_sizes(content: bytes) -> Iterable[int]:
    """Return the sizes of texts that each stand behind their length in four bytes."""
    at = 0
    while at + _LENGTH.size <= len(content):
        (size,) = _LENGTH.unpack_from(content, at)
        yield size
        at += _LENGTH.size + size


def _text_sizes(name: str, data: Any) -> Iterable[int]:
    """Return the sizes of the texts in lists of lists."""
    stack, row = [data], 0
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
            continue
        if not isinstance(value, str):
            raise RefusedError(400, f"{name} {row}: a text must be a string, and this is {json.dumps(value)[:40]}")
        try:
            yield len(value.encode())
        except UnicodeEncodeError as error:
            raise RefusedError(400, f"{name} {row}: half of a surrogate pair at character {error.start}") from None
        row += 1


def _rows(tensor: Any) -> int:
    """Return the number of rows that a tensor's shape says."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise RefusedError(400, f"{tensor.get('name')}: shape must be a list of whole numbers from 0, such as [1, 1]")
    return shape[0] if shape else 0


class _Objects:
    """Makes the objects of a request in JSON."""

    def __init__(self) -> None:
        self._count = 0

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object.

        Raises:
            ValueError: It is one too many, or has a key twice: Triton might read the other value than was checked here.
        """
        self._count += 1
        if self._count > MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS:,} objects")
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is in one object twice")
        return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _first_too_long(sizes: Iterable[int], limits: Limits) -> tuple[int, int] | None:
    # More than the tensor's shape may say are refused by Triton, and are not worth the time.
    some = islice(sizes, limits.max_texts + 1)
    return next(((row, size) for row, size in enumerate(some) if size > limits.max_text_bytes), None)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _parameter(tensor: Any, name: str) -> Any:
    parameters = tensor.get("parameters")
    return parameters.get(name) if isinstance(parameters, dict) else None
