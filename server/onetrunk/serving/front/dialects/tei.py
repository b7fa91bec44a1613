"""`POST /predict` as text-embeddings-inference answers it (router/src/http of its version 1.9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.errors import BadInput
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.dialects.labelled import WrongKindError, ask, chosen, example_texts, ranked
from onetrunk.serving.front.errors import error_body
from onetrunk.serving.front.faults import RequestBody
from onetrunk.serving.front.operations import FIRST_FAULT, ROWS, Dialect, Example, Operation, parse

Sequence1or2 = Annotated[list[str], Field(min_length=1, max_length=2), FIRST_FAULT]


class TeiRequest(RequestBody):
    """A request to `/predict`.

    Attributes:
        inputs: A text; a pair of texts; or a batch, whose entries are lists of one text or two.
        raw_scores: Whether to answer with logits in place of probabilities.
        truncate: Whether a text may be cut that is longer than the server reads. False refuses it.
    """

    such_as: ClassVar[str] = '{"inputs": "A text."}'

    inputs: str | Sequence1or2 | Annotated[list[Sequence1or2], Field(min_length=1), ROWS]
    raw_scores: bool = False
    truncate: bool | None = None

    def rows(self) -> tuple[list[list[str]], bool]:
        """Return the texts, one or two a row, and whether they are a batch."""
        inputs = self.inputs
        if isinstance(inputs, str):
            return [[inputs]], False
        batch = [row for row in inputs if isinstance(row, list)]
        return (batch, True) if batch else ([[text for text in inputs if isinstance(text, str)]], False)


class TeiPrediction(BaseModel):
    """A label and its score.

    Attributes:
        score: The score.
        label: The label; `LABEL_0` for a number.
    """

    model_config = ConfigDict(extra="forbid")

    score: float
    label: str


class TeiError(BaseModel):
    """Why there is no answer.

    Attributes:
        error: The message.
        error_type: What is at fault.
    """

    model_config = ConfigDict(extra="forbid")

    error: str
    error_type: Literal["unhealthy", "backend", "overloaded", "validation", "tokenizer"]


# The statuses of an error that is the request's fault.
_INVALID = (400, 401, 404, 408, 413, 422)


def tei_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a failure: 424 if the model failed, 422 if a text cannot be read."""
    status, message = error_body(error)
    if isinstance(error, WrongKindError):
        status, kind = 424, "backend"
    elif isinstance(error, BadInput):
        status, kind = 422, "tokenizer"
    elif status == 429:
        kind = "overloaded"
    elif status == 503:
        kind = "unhealthy"
    elif status in _INVALID:
        kind = "validation"
    else:
        status, kind = 424, "backend"
    return status, {"error": message, "error_type": kind}


def check_truncation(answers: Sequence[Answer]) -> None:
    """Refuse texts whose end was not read.

    Raises:
        RefusedError: There is one; the message names the first.
    """
    if cut := [row for row, answer in enumerate(answers) if answer.truncated]:
        raise RefusedError(413, f"inputs {cut[0]} is longer than the server reads: shorten it, or allow `truncate`")


class Tei(Dialect):
    """The endpoint."""

    def operations(self) -> list[Operation]:
        """Return the endpoint."""
        return [
            Operation(
                method="POST",
                path="/predict",
                handler=self.predict,
                tag="text-embeddings-inference",
                summary="Ask one task about a text, a pair, or a batch of either",
                request=TeiRequest,
                answer=list[TeiPrediction] | list[list[TeiPrediction]],
                query={"task": "the task; needed if the server has several"},
                examples=_examples,
                errors=tei_error,
                error=TeiError,
            )
        ]

    async def predict(self, request: Request) -> Response:
        """Answer a request."""
        asked: TeiRequest = parse(TeiRequest, await self._service.body(request))
        task = chosen(await self._service.catalogue(), request.query_params.get("task"), "with ?task=")
        rows, batched = asked.rows()
        answers = await ask(self._service, task, rows)
        if asked.truncate is False:
            check_truncation(answers)
        predictions = [
            [{"score": score, "label": label} for label, score in ranked(task, answer, raw=asked.raw_scores)]
            for answer in answers
        ]
        return JSONResponse(predictions if batched else predictions[0])


def _examples(catalogue: Catalogue) -> Mapping[str, Example]:
    found: dict[str, Example] = {}
    for task, texts in example_texts(catalogue):
        query = {"task": task.name}
        found[task.form] = Example({"inputs": texts if len(texts) == 2 else texts[0]}, query)
        found[f"{task.form}_batch"] = Example({"inputs": [texts], "raw_scores": True}, query)
    return found
