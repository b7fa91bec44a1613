"""`POST /classify` as vLLM answers it, `POST /v1/classify` as infinity does, and `GET /v1/models` as both do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.dialects.labelled import NUMBER_LABEL, ask, chosen, example_texts, ranked
from onetrunk.serving.front.errors import error_body
from onetrunk.serving.front.faults import RequestBody
from onetrunk.serving.front.operations import FIRST_FAULT, ROWS, Dialect, Example, Operation, parse
from onetrunk.serving.front.service import Service

Pair = Annotated[list[str], Field(min_length=2, max_length=2), FIRST_FAULT]
Input = str | Annotated[Annotated[list[str], ROWS] | Annotated[list[Pair], ROWS], Field(min_length=1)]

# What infinity's clients send if they name no model.
_NO_MODEL = "default/not-specified"


class VllmRequest(RequestBody):
    """A request to `/classify`. Fields that are not listed are ignored, as vLLM does.

    Attributes:
        model: The task; needed if the server has several.
        input: One text or several; for tasks on pairs, lists of two texts. Token ids are not taken.
        use_activation: False answers with logits in place of probabilities.
    """

    such_as: ClassVar[str] = '{"model": "TASK", "input": ["A text."]}'

    model: str | None = None
    input: Input
    use_activation: bool | None = None


class InfinityRequest(RequestBody):
    """A request to `/v1/classify`.

    Attributes:
        model: The task; needed if the server has several.
        input: The texts; for tasks on pairs, lists of two texts.
        raw_scores: Whether to answer with logits in place of probabilities.
    """

    such_as: ClassVar[str] = '{"model": "TASK", "input": ["A text."]}'

    model: str | None = None
    input: Input
    raw_scores: bool = False


class Usage(BaseModel):
    """What was read.

    Attributes:
        prompt_tokens: The tokens of all texts that were read, special tokens included; 0 if the server does not count.
        total_tokens: The same.
    """

    model_config = ConfigDict(extra="forbid")

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Usage:
        """Return the usage of a request with these answers."""
        tokens = sum(answer.tokens or 0 for answer in answers)
        return cls(prompt_tokens=tokens, total_tokens=tokens)


class VllmClass(BaseModel):
    """The answer to one text.

    Attributes:
        index: The place of the text in the request.
        label: The most likely label; `LABEL_0` for a number.
        probs: The probability of each label, in the order of the task's labels; or the number.
        num_classes: How many there are.
    """

    model_config = ConfigDict(extra="forbid")

    index: int
    label: str
    probs: list[float]
    num_classes: int


class VllmAnswer(BaseModel):
    """The answer to a request to `/classify`.

    Attributes:
        id: A name of the request.
        object: Always `list`.
        created: The time in seconds since 1970.
        model: The task.
        data: One entry for each text, in order.
        usage: The tokens.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmClass]
    usage: Usage


class InfinityClass(BaseModel):
    """A label and its score.

    Attributes:
        score: The score.
        label: The label; `LABEL_0` for a number.
    """

    model_config = ConfigDict(extra="forbid")

    score: float
    label: str


class InfinityAnswer(BaseModel):
    """The answer to a request to `/v1/classify`.

    Attributes:
        object: Always `classify`.
        data: For each text, its labels, the most likely first.
        model: The task.
        usage: The tokens.
        id: A name of the request.
        created: The time in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid")

    object: Literal["classify"] = "classify"
    data: list[list[InfinityClass]]
    model: str
    usage: Usage
    id: str
    created: int


class ModelCard(BaseModel):
    """A task, as OpenAI's clients read it.

    Attributes:
        id: The task.
        object: Always `model`.
        created: When the front started, in seconds since 1970.
        owned_by: Always `onetrunk`.
        max_model_len: The most tokens that are read of a text.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["onetrunk"] = "onetrunk"
    max_model_len: int


class SystemOneModel(BaseModel):
    """A task, as System One's clients read it.

    Attributes:
        name: The task.
        description: Its kind, what it may answer, and its version.
        release_date: Empty: the server does not know it.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    release_date: str = ""


class ModelsAnswer(BaseModel):
    """The tasks that are served, twice: for clients of OpenAI's API, and for those of System One.

    Attributes:
        object: Always `list`.
        data: The tasks, as vLLM and infinity list models.
        models: The same tasks, as System One lists models.
    """

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[ModelCard]
    models: list[SystemOneModel]


class ErrorDetail(BaseModel):
    """A failure.

    Attributes:
        message: What was found, what is allowed, and what to do.
        type: The kind of failure, such as `BadRequestError`.
        param: Always null.
        code: The HTTP status.
    """

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: None = None
    code: int


class OpenAiError(BaseModel):
    """Why there is no answer.

    Attributes:
        error: The failure.
    """

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


def openai_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a failure. What does not fit the schema is 400, as in vLLM."""
    status, message = error_body(error)
    status = 400 if status == 422 else status
    kind = f"{HTTPStatus(status).phrase.title().replace(' ', '').removesuffix('Error')}Error"
    return status, OpenAiError(error=ErrorDetail(message=message, type=kind, code=status)).model_dump()


class Classify(Dialect):
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._created = int(time.time())

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation(
                method="POST",
                path="/classify",
                handler=self.as_vllm,
                tag="vLLM",
                summary="Ask one task about texts",
                request=VllmRequest,
                answer=VllmAnswer,
                examples=_examples,
                errors=openai_error,
                error=OpenAiError,
            ),
            Operation(
                method="POST",
                path="/v1/classify",
                handler=self.as_infinity,
                tag="infinity",
                summary="Ask one task about texts",
                request=InfinityRequest,
                answer=InfinityAnswer,
                examples=_examples,
                errors=openai_error,
                error=OpenAiError,
            ),
            Operation(
                method="GET",
                path="/v1/models",
                handler=self.models,
                tag="vLLM",
                summary="List the tasks as models",
                answer=ModelsAnswer,
                errors=openai_error,
                error=OpenAiError,
            ),
        ]

    async def as_vllm(self, request: Request) -> Response:
        """Answer as vLLM does."""
        asked: VllmRequest = parse(VllmRequest, await self._service.body(request))
        task, answers = await self._answers(asked.model, asked.input)
        data = []
        for index, answer in enumerate(answers):
            scores = dict(ranked(task, answer, raw=asked.use_activation is False))
            probs = [scores[label] for label in task.labels or (NUMBER_LABEL,)]
            data.append(VllmClass(index=index, label=next(iter(scores)), probs=probs, num_classes=len(probs)))
        found = VllmAnswer(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=task.name,
            data=data,
            usage=Usage.of(answers),
        )
        return JSONResponse(found.model_dump())

    async def as_infinity(self, request: Request) -> Response:
        """Answer as infinity does."""
        asked: InfinityRequest = parse(InfinityRequest, await self._service.body(request))
        task, answers = await self._answers(asked.model, asked.input)
        data = [
            [InfinityClass(score=score, label=label) for label, score in ranked(task, answer, raw=asked.raw_scores)]
            for answer in answers
        ]
        found = InfinityAnswer(
            data=data,
            model=task.name,
            usage=Usage.of(answers),
            id=f"infinity-{uuid.uuid4()}",
            created=int(time.time()),
        )
        return JSONResponse(found.model_dump())

    async def models(self, request: Request) -> Response:
        """List the tasks."""
        catalogue = await self._service.catalogue()
        length = catalogue.max_length
        found = ModelsAnswer(
            data=[ModelCard(id=name, created=self._created, max_model_len=length) for name in catalogue.tasks],
            models=[SystemOneModel(name=name, description=_about(task)) for name, task in catalogue.tasks.items()],
        )
        return JSONResponse(found.model_dump())

    async def _answers(self, model: str | None, given: Any) -> tuple[TaskInfo, list[Answer]]:
        task = chosen(await self._service.catalogue(), None if model == _NO_MODEL else model, "as `model`")
        rows = [[row] if isinstance(row, str) else row for row in ([given] if isinstance(given, str) else given)]
        if (task.form == "pair") != (len(rows[0]) == 2):
            needed = "lists of two texts" if task.form == "pair" else "texts"
            raise RefusedError(400, f"task {task.name!r} reads {needed}: give `input` as a list of {needed}")
        return task, await ask(self._service, task, rows)


def _about(task: TaskInfo) -> str:
    reader = reader_of(task)
    return f"{task.kind} of {task.form} texts: {reader.answers(task) if reader else '?'} (version {task.version})"


def _examples(catalogue: Catalogue) -> Mapping[str, Example]:
    return {
        task.form: Example({"model": task.name, "input": [texts if len(texts) == 2 else texts[0]]})
        for task, texts in example_texts(catalogue)
    }
