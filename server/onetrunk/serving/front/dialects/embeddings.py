"""`POST /v1/embeddings` as OpenAI answers it, and `POST /embed` as text-embeddings-inference does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import EmbeddingPrediction, EmbeddingReader, width_of
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.dialects.classify import OpenAiError, Usage, openai_error
from onetrunk.serving.front.dialects.labelled import ask
from onetrunk.serving.front.dialects.tei import TeiError, check_truncation, tei_error
from onetrunk.serving.front.faults import RequestBody
from onetrunk.serving.front.operations import (
    JSON,
    ROWS,
    TEXT_EXAMPLES,
    Dialect,
    Example,
    Operation,
    json_list,
    json_object,
    parse,
)


def _no_token_ids(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], list | int):
        raise PydanticCustomError("token_ids", "token ids are not read here: send texts")
    return value


Texts = Annotated[str | Annotated[list[str], Field(min_length=1), ROWS], BeforeValidator(_no_token_ids)]


class EmbeddingsRequest(RequestBody):
    """A request to `/v1/embeddings`. Fields that are not listed, such as `user`, are ignored.

    Attributes:
        input: One text or several. Token ids are not taken.
        model: The task; needed if the server has several embeddings.
        encoding_format: `float` for a list of numbers, or `base64` for the bytes of 32-bit floats, little-endian.
        dimensions: The size of the vector, if it is given at all: a vector is not shortened.
    """

    such_as: ClassVar[str] = '{"input": ["A text."]}'

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class EmbeddingRow(BaseModel):
    """The vector of one text.

    Attributes:
        object: Always `embedding`.
        index: The place of the text in the request.
        embedding: The vector, of length 1, as `encoding_format` says.
        truncated: True if the text was longer than the server reads, and the vector is that of its beginning; absent
            otherwise.
    """

    model_config = ConfigDict(extra="forbid")

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool | None = None


class EmbeddingsAnswer(BaseModel):
    """The answer to a request to `/v1/embeddings`.

    Attributes:
        object: Always `list`.
        data: One entry for each text, in order.
        model: The task.
        usage: The tokens.
    """

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: Usage


class EmbedRequest(RequestBody):
    """A request to `/embed`. Fields that are not listed are ignored.

    Attributes:
        inputs: One text or several.
        normalize: Whether vectors have the length 1. Others are not served.
        truncate: Whether a text may be cut that is longer than the server reads. False refuses it.
        dimensions: The size of the vector, if it is given at all.
    """

    such_as: ClassVar[str] = '{"inputs": ["A text."]}'

    inputs: Texts
    normalize: bool = True
    truncate: bool | None = None
    dimensions: int | None = None


class Embeddings(Dialect):
    """The endpoints."""

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation(
                method="POST",
                path="/v1/embeddings",
                handler=self.as_openai,
                tag="OpenAI",
                summary="Return the embeddings of texts",
                request=EmbeddingsRequest,
                answer=EmbeddingsAnswer,
                examples=_openai_examples,
                errors=openai_error,
                error=OpenAiError,
            ),
            Operation(
                method="POST",
                path="/embed",
                handler=self.as_tei,
                tag="text-embeddings-inference",
                summary="Return the embeddings of texts",
                request=EmbedRequest,
                answer=list[list[float]],
                query={"task": "the task; needed if the server has several embeddings"},
                examples=_tei_examples,
                errors=tei_error,
                error=TeiError,
            ),
        ]

    async def as_openai(self, request: Request) -> Response:
        """Answer as OpenAI does."""
        asked: EmbeddingsRequest = parse(EmbeddingsRequest, await self._service.body(request))
        task, answers = await self._ask(asked.model, "as `model`", asked.input, asked.dimensions)
        form = _base64 if asked.encoding_format == "base64" else _numbers
        rows = (
            {"object": "embedding", "index": at, "embedding": form(vector)}
            | ({"truncated": True} if answer.truncated else {})
            for at, (vector, answer) in enumerate(zip(_vectors(task, answers), answers, strict=True))
        )
        return json_object(
            object='"list"',
            data=await json_list(rows),
            model=json.dumps(task.name),
            usage=Usage.of(answers).model_dump_json(),
        )

    async def as_tei(self, request: Request) -> Response:
        """Answer as text-embeddings-inference does."""
        asked: EmbedRequest = parse(EmbedRequest, await self._service.body(request))
        if not asked.normalize:
            raise RefusedError(400, "normalize is false, and only vectors of length 1 are served: leave it out")
        name = request.query_params.get("task")
        task, answers = await self._ask(name, "with ?task=", asked.inputs, asked.dimensions)
        if asked.truncate is False:
            check_truncation(answers)
        return Response(await json_list(map(_numbers, _vectors(task, answers))), media_type=JSON)

    async def _ask(
        self, name: str | None, how: str, texts: str | list[str], dimensions: int | None
    ) -> tuple[TaskInfo, list[Answer]]:
        task = _chosen(await self._service.catalogue(), name, how)
        if dimensions not in (None, width_of(task)):
            raise RefusedError(400, f"dimensions is {dimensions}, and {task.name} has {width_of(task)}: leave it out")
        rows = [[texts]] if isinstance(texts, str) else [[text] for text in texts]
        return task, await ask(self._service, task, rows)


def _chosen(catalogue: Catalogue, name: str | None, how: str) -> TaskInfo:
    """Return the embedding that a request asks.

    Args:
        catalogue: The tasks that are served.
        name: The task that it names, or None.
        how: How a request names a task, for the message.

    Raises:
        UnknownTask: The task is not served.
        RefusedError: There is no embedding, the task is none, or the request names none and there are several.
    """
    served = [task for task in catalogue.tasks.values() if task.read_kind == EmbeddingReader.kind]
    if not served:
        raise RefusedError(
            404, "no embedding is served: add one by deploy-head --embed, or by build-repo --embed and a restart"
        )
    names = ", ".join(task.name for task in served)
    if name is not None:
        (task,) = catalogue.named([name])
        if task not in served:
            raise RefusedError(400, f"task {task.name!r} is {task.kind}, and no embedding: ask {names}")
        return task
    if len(served) != 1:
        raise RefusedError(422, f"which embedding? This server has several: name one {how}. Served: {names}")
    return served[0]


def _vectors(task: TaskInfo, answers: Sequence[Answer]) -> Iterator[NDArray[np.float32]]:
    """Yield the vector of each text. *Shape of each:* (width,)."""
    for answer in answers:
        prediction = answer[task.name]
        assert isinstance(prediction, EmbeddingPrediction)
        yield np.array(prediction.embedding, dtype="<f4")


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    """Return a vector to eight decimals, as `/v1/predict` gives it."""
    found: list[float] = vector.astype(np.float64).round(8).tolist()
    return found


def _base64(vector: NDArray[np.float32]) -> str:
    """Return the bytes of a vector."""
    return base64.b64encode(vector.tobytes()).decode()


def _openai_examples(catalogue: Catalogue) -> Mapping[str, Example]:
    return {
        form: Example({"model": task.name, "input": given, **more})
        for task in _first(catalogue)
        for form, given, more in (
            ("one", TEXT_EXAMPLES["single"][0], {}),
            ("several", list(TEXT_EXAMPLES["pair"]), {"encoding_format": "base64"}),
        )
    }


def _tei_examples(catalogue: Catalogue) -> Mapping[str, Example]:
    return {
        task.form: Example({"inputs": list(TEXT_EXAMPLES["pair"])}, {"task": task.name}) for task in _first(catalogue)
    }


def _first(catalogue: Catalogue) -> list[TaskInfo]:
    return [task for task in catalogue.tasks.values() if task.read_kind == EmbeddingReader.kind][:1]
