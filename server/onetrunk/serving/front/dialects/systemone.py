"""`POST /v1/systemone`: typed decisions in the shapes of System One (Jev), as `transformers serve` answers them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.errors import BadInput
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.dialects.decisions import Decision, NoHeadError, Question, decide
from onetrunk.serving.front.errors import error_body
from onetrunk.serving.front.faults import FaultyRequestError, RequestBody, RequestFault
from onetrunk.serving.front.operations import TEXT_EXAMPLES, Dialect, Example, Operation, parse

_QUESTIONS_BYTES = 256 * 1024
"""What a request may have beside its state."""
JEV = "jev-"
"""What the names of System One's models begin with. Its clients send `jev-latest` unless they are told otherwise."""


class SystemOneRequest(RequestBody):
    """A request to `/v1/systemone`. Fields that are not listed are ignored.

    Attributes:
        model: `jev-latest` or another name of Jev, or a task, which then answers every question that means no other.
        state: What the questions are about: a text; two texts, as a list or as `text` and `text_pair` of an object,
            for tasks on pairs; anything else is read as its JSON.
        questions: Id -> question.
        assets: Images, which no head reads: it must be empty.
    """

    such_as: ClassVar[str] = '{"model": "jev-latest", "state": "A text.", "questions": {"TASK": {"type": "noul"}}}'

    model: str
    state: str | dict[str, Any] | list[Any]
    questions: dict[Annotated[str, Field(min_length=1)], Question] = Field(min_length=1, max_length=64)
    assets: dict[str, Any] = Field(default_factory=dict, max_length=0)

    @cached_property
    def _as_text(self) -> str:
        """The state as one text. Up to as many questions as are allowed ask for it."""
        return self.state if isinstance(self.state, str) else json.dumps(self.state, ensure_ascii=False)

    def texts(self, form: str) -> tuple[str, str | None]:
        """Return the text, or two of them for a task on pairs.

        Raises:
            NoHeadError: The state is not two texts.
        """
        if form == "single":
            return self._as_text, None
        if isinstance(self.state, dict):
            two = [self.state.get("text"), self.state.get("text_pair")]
        else:
            two = self.state if isinstance(self.state, list) else []
        match two:
            case [str(text), str(pair)]:
                return text, pair
        raise NoHeadError('it reads two texts: give `state` as [text, text], or {"text": ..., "text_pair": ...}')


class Usage(BaseModel):
    """What was read.

    Attributes:
        input_tokens: The tokens of the state, special tokens included; 0 if the server does not count them.
        output_tokens: 0: nothing is generated.
    """

    model_config = ConfigDict(extra="forbid")

    input_tokens: int
    output_tokens: int = 0


class DecisionRecord(BaseModel):
    """The answer to a question. Which fields it has depends on its type.

    Attributes:
        type: The type of the question.
        noul: The probability of `true`.
        choice: The likeliest option.
        score: The mean of the levels, the lowest being 0.
        legend: Number of a level -> the level.
        confidence: 0 where all options are equally likely, 1 where one is certain.
        probabilities: Option, or number of a level, -> probability.
        x_task: The task that answered.
        x_label: For a noul, the label that `true` stands for.
        x_number: For a score from a regression, its number.
        x_none_of_these: True if even the likeliest option is less likely than the task requires of an answer.
        x_windows: The number of windows in which a long state was read; absent if it was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    type: str
    noul: float | None = None
    choice: str | None = None
    score: float | None = None
    legend: dict[str, Any] | None = None
    confidence: float | None = None
    probabilities: dict[str, float] | None = None
    x_task: str
    x_label: str | None = None
    x_number: float | None = None
    x_none_of_these: bool | None = None
    x_windows: int | None = None


class SystemOneAnswer(BaseModel):
    """The answer to a request to `/v1/systemone`.

    Attributes:
        model: The `model` of the request.
        answers: Id of a question -> its answer.
        usage: The tokens.
        x_truncated: True if the state was longer than the server reads; absent otherwise.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    answers: dict[str, DecisionRecord]
    usage: Usage
    x_truncated: bool | None = None


class Fault(BaseModel):
    """What is wrong with a request.

    Attributes:
        loc: Where: `body`, and the names of fields from there on.
        msg: What was found, what is allowed, and what to do.
        type: The kind of fault; `no_head` if no head answers the question.
    """

    model_config = ConfigDict(extra="forbid")

    loc: list[str | int]
    msg: str
    type: str


class Failure(BaseModel):
    """Why there is no answer, if the request is not at fault.

    Attributes:
        error_type: The kind of failure.
        message: What happened.
    """

    model_config = ConfigDict(extra="forbid")

    error_type: str
    message: str


class SystemOneError(BaseModel):
    """Why there is no answer.

    Attributes:
        detail: All faults of the request, with the status 422; or one failure.
    """

    model_config = ConfigDict(extra="forbid")

    detail: list[Fault] | Failure


_ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def systemone_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a failure."""
    if isinstance(error, BadInput):
        error = FaultyRequestError(
            [RequestFault(("state",), problem.message, "value_error") for problem in error.problems]
        )
    if isinstance(error, FaultyRequestError):
        faults = [{"loc": ["body", *one.place], "msg": one.message, "type": one.kind} for one in error.faults]
        return 422, {"detail": faults}
    status, message = error_body(error)
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"detail": {"error_type": kind, "message": message}}


class SystemOne(Dialect):
    """The endpoint."""

    def operations(self) -> list[Operation]:
        """Return the endpoint."""
        return [
            Operation(
                method="POST",
                path="/v1/systemone",
                handler=self.decide,
                tag="System One",
                summary="Answer typed questions about one state, all in one pass of the trunk",
                request=SystemOneRequest,
                answer=SystemOneAnswer,
                examples=_examples,
                errors=systemone_error,
                error=SystemOneError,
            )
        ]

    async def decide(self, request: Request) -> Response:
        """Answer every question, or none."""
        body = await self._service.body(request)
        # As JSON, six bytes may stand for one. Of what is longer than that, no text could be read in any case.
        if len(body) > (most := 6 * self._service.max_text_bytes + _QUESTIONS_BYTES):
            raise RefusedError(413, f"the request has {len(body):,} bytes, and {most:,} are allowed: shorten the state")
        asked: SystemOneRequest = parse(SystemOneRequest, body)
        decisions = _decisions(asked, await self._service.catalogue())
        forms = dict.fromkeys(decision.task.form for decision in decisions.values())
        answers = dict(zip(forms, await asyncio.gather(*(self._ask(asked, decisions, f) for f in forms)), strict=True))
        found: dict[str, Any] = {
            "model": asked.model,
            "answers": {name: one.answer(answers[one.task.form][one.task.name]) for name, one in decisions.items()},
            "usage": Usage(input_tokens=sum(answer.tokens or 0 for answer in answers.values())).model_dump(),
        }
        if any(answer.truncated for answer in answers.values()):
            found["x_truncated"] = True
        return JSONResponse(found)

    async def _ask(self, asked: SystemOneRequest, decisions: Mapping[str, Decision], form: str) -> Answer:
        """Ask all tasks of one form about the state at once."""
        text, pair = asked.texts(form)
        tasks = dict.fromkeys(one.task.name for one in decisions.values() if one.task.form == form)
        (answer,) = await self._service.predict([text], [pair], list(tasks))
        return answer


def _decisions(asked: SystemOneRequest, catalogue: Catalogue) -> dict[str, Decision]:
    """Return id -> decision.

    Raises:
        UnknownTask: The model is neither a task nor Jev.
        FaultyRequestError: No head answers some of the questions. All of them are named.
    """
    if not asked.model.startswith(JEV):
        catalogue.named([asked.model])
    found, faults = {}, []
    for name, question in asked.questions.items():
        try:
            found[name] = decide(name, question, asked.model, catalogue.tasks)
            asked.texts(found[name].task.form)
        except NoHeadError as error:
            faults.append(RequestFault(("questions", name), f"no head answers it: {error}", "no_head"))
    if faults:
        raise FaultyRequestError(faults)
    return found


def _examples(catalogue: Catalogue) -> Mapping[str, Example]:
    """Return a request for each form, with a question of each type that a task of the form can answer."""
    found: dict[str, Example] = {}
    for form, texts in TEXT_EXAMPLES.items():
        questions: dict[str, Any] = {}
        for task in (task for task in catalogue.tasks.values() if task.form == form):
            if task.read_kind == "classification" and len(task.labels or ()) == 2 and "holds" not in questions:
                questions["holds"] = {"type": "noul", "instructions": {"task": task.name}}
            elif task.read_kind == "classification" and task.name not in questions:
                questions[task.name] = {"type": "choice", "criteria": dict.fromkeys(task.labels or ())}
            elif task.read_kind == "regression" and task.range is not None:
                questions[task.name] = {"type": "score", "criteria": ["low", "middle", "high"]}
        if questions:
            state = texts[0] if form == "single" else list(texts)
            found[form] = Example({"model": "jev-latest", "state": state, "questions": questions})
    return found
