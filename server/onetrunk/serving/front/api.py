"""Our own JSON API: texts in, answers out, in the form of ask-repo's JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, ClassVar, TypeGuard

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from onetrunk.client.catalogue import Catalogue
from onetrunk.client.display import answer_record, task_record
from onetrunk.client.lines import BadLine, Line, read_line
from onetrunk.client.readers import READERS
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import BadInput, counted
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.drift.comparison import Drift
from onetrunk.serving.front.errors import error_body
from onetrunk.serving.front.faults import RequestBody
from onetrunk.serving.front.observed import StreamedResponse, failure
from onetrunk.serving.front.operations import (
    ROWS,
    TEXT_EXAMPLES,
    Dialect,
    Example,
    Operation,
    in_turns,
    json_list,
    json_object,
    parse,
    tasks_for_examples,
)
from onetrunk.serving.front.records import AnswerRecord

NDJSON = "application/x-ndjson"
# Lines of one NDJSON request that are asked together.
LINES_AT_ONCE = 256
# Of one NDJSON request that cannot be used. What is said of a line may be a hundred times as long as the line.
MOST_BAD_LINES = 10_000
_OF_ONE_TEXT = re.compile(r"^(text|text_pair) 0: ")


class PredictRequest(RequestBody):
    """A request to `/v1/predict`.

    Attributes:
        texts: One text or several.
        pairs: The second texts, one for each text; null for a text without one.
        tasks: The tasks to ask; by default every task that fits the text, but no embedding.
        top: The number of labels whose scores come; by default all.
    """

    model_config = ConfigDict(extra="forbid")

    such_as: ClassVar[str] = '{"texts": ["A text."]}'
    meant: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("input", "inputs", "instances", "sentence", "sentences"), "texts"),
        **dict.fromkeys(("text_pair", "text_pairs"), "pairs"),
        "model": "tasks",
    }

    texts: str | Annotated[list[str], ROWS]
    pairs: str | Annotated[list[str | None], ROWS] | None = None
    tasks: Annotated[list[str], ROWS] | None = Field(default=None, min_length=1)
    top: int | None = Field(default=None, ge=1)

    def rows(self) -> tuple[list[str], list[str | None]]:
        """Return texts and second texts as lists of one length.

        Raises:
            BadInput: There are not as many second texts as texts.
        """
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        pairs = self.pairs
        if pairs is None:
            return texts, [None] * len(texts)
        seconds: list[str | None] = [pairs] if isinstance(pairs, str) else pairs
        if len(seconds) != len(texts):
            found = f"{counted(len(seconds), 'pair', 'pairs')} for {counted(len(texts), 'text', 'texts')}"
            raise BadInput.of_call(f"{found}: give one, or null, for each text")
        return texts, seconds


class PredictAnswer(BaseModel):
    """The answers to a request to `/v1/predict`.

    Attributes:
        answers: One for each text, in order.
    """

    model_config = ConfigDict(extra="forbid")

    answers: list[AnswerRecord]


class TasksAnswer(BaseModel):
    """The tasks that are served.

    Attributes:
        trunk: The identity of the trunk below all heads.
        max_length: The most tokens that are read of a text.
        max_batch_size: The most texts that the model server takes at a time. A request may hold more.
        tasks: Name -> task.
        drift: Name -> how far the answers of late are from those on the dev data, for tasks with a reference.
    """

    model_config = ConfigDict(extra="forbid")

    trunk: str
    max_length: int
    max_batch_size: int
    tasks: dict[str, TaskInfo]
    drift: dict[str, Drift]


class _Lines(StreamedResponse):
    """An answer line by line, during which the body of the request is held, and counted."""

    def __init__(self, lines: AsyncIterator[str], held: AbstractContextManager[None]) -> None:
        super().__init__(lines, media_type=NDJSON)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.observation, contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._held)
            except RefusedError as error:
                self.refuse(error)
                await failure(error)(scope, receive, send)
            else:
                await self.stream(scope, receive, send)


class Api(Dialect):
    """The endpoints of the API."""

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation(
                method="POST",
                path="/v1/predict",
                handler=self.predict,
                tag="OneTrunk",
                summary="Ask any number of tasks about any number of texts",
                request=PredictRequest,
                answer=PredictAnswer,
                query={"tasks": "for a body in NDJSON: the tasks, separated by commas"},
                examples=_examples,
            ),
            Operation(
                method="GET",
                path="/v1/tasks",
                handler=self.tasks,
                tag="OneTrunk",
                summary="List the tasks that are served",
                answer=TasksAnswer,
            ),
        ]

    async def predict(self, request: Request) -> Response:
        """Answer texts: one JSON object, or line by line if the request is NDJSON."""
        if request.headers.get("content-type", "").partition(";")[0].strip() in (NDJSON, "application/jsonl"):
            return await self._predict_lines(request)
        if "tasks" in request.query_params:
            raise RefusedError(422, "tasks: this parameter is for a body in NDJSON; give tasks as a field of the body")
        asked: PredictRequest = parse(PredictRequest, await self._service.body(request))
        texts, pairs = asked.rows()
        answers = await self._service.predict(texts, pairs, asked.tasks)
        records = (
            answer_record(Line(0, text, pair), answer, top=asked.top, numbered=False)
            for text, pair, answer in zip(texts, pairs, answers, strict=True)
        )
        return json_object(answers=await json_list(records))

    async def tasks(self, request: Request) -> Response:
        """List the tasks that are served."""
        catalogue = await self._service.catalogue()
        return JSONResponse(
            {
                "trunk": catalogue.trunk,
                "max_length": catalogue.max_length,
                "max_batch_size": catalogue.max_batch_size,
                "tasks": {name: task_record(task) for name, task in catalogue.tasks.items()},
                "drift": {name: drift.model_dump(mode="json") for name, drift in self._service.drifts().items()},
            }
        )

    async def _predict_lines(self, request: Request) -> Response:
        """Answer each line of the body with a line, in order. A line that cannot be answered has an `error`."""
        names = request.query_params.get("tasks")
        tasks = names.split(",") if names else None
        await self._service.check_tasks(tasks)
        body = await self._service.body(request)
        return _Lines(self._answered_lines(body, tasks), self._service.holding(len(body)))

    async def _answered_lines(self, body: bytes, tasks: Sequence[str] | None) -> AsyncIterator[str]:
        lines: list[Line | BadLine] = []
        bad = 0
        for number, line in enumerate(io.BytesIO(body), start=1):
            if line.strip():
                lines.append(read_line(number, line, plain=False))
                bad += _is_bad(lines[-1])
            if bad > MOST_BAD_LINES:
                why = f"it is one of more than {MOST_BAD_LINES:,} that cannot be used: no more of the lines are read"
                lines[-1] = BadLine(number, why)
                break
            if number % LINES_AT_ONCE == 0:
                yield await self._answers_to(lines, tasks)
                lines = []
                await asyncio.sleep(0)  # others must have their turn, even if no line of all is worth a question
        yield await self._answers_to(lines, tasks)

    async def _answers_to(self, lines: list[Line | BadLine], tasks: Sequence[str] | None) -> str:
        records = {line.number: {"line": line.number, "error": line.reason} for line in lines if _is_bad(line)}
        records |= await self._answered([line for line in lines if isinstance(line, Line)], tasks)
        written = [json.dumps(records[line.number], ensure_ascii=False) async for line in in_turns(lines)]
        return "".join(f"{line}\n" for line in written)

    async def _answered(self, lines: list[Line], tasks: Sequence[str] | None) -> dict[int, dict[str, Any]]:
        """Return line number -> answer, or what is wrong with the line."""
        if not lines:
            return {}
        faults: dict[int | None, str] = {}
        try:
            answers = await self._service.predict([line.text for line in lines], [line.pair for line in lines], tasks)
        except BadInput as error:
            faults = {problem.row: problem.message for problem in error.problems}
            if None in faults:
                faults = dict.fromkeys(range(len(lines)), faults[None])
        except Exception as error:
            # The client did not put these lines together, and perhaps one alone is too long.
            if not _is_too_much(error) or len(lines) == 1:
                # A line's only text has no number.
                faults = dict.fromkeys(range(len(lines)), _OF_ONE_TEXT.sub(r"\1: ", error_body(error)[1]))
        else:
            return {
                line.number: answer_record(line, answer, top=None, numbered=True)
                async for line, answer in in_turns(zip(lines, answers, strict=True))
            }
        records = {lines[row].number: _fault(lines[row], text) for row, text in faults.items() if row is not None}
        left = [line for row, line in enumerate(lines) if row not in faults]
        # The others are asked again in halves: of what only the tokenizer refuses, one line is told at a time, and many
        # such lines must not make each of the others be asked as often.
        half = len(left) // 2
        for some in (left[:half], left[half:]):
            records |= await self._answered(some, tasks)
        return records


def _examples(catalogue: Catalogue) -> Mapping[str, Example]:
    found: dict[str, Example] = {}
    for task in tasks_for_examples(catalogue, *READERS):
        text, *pair = TEXT_EXAMPLES[task.form]
        found[task.form] = Example({"texts": [text], **({"pairs": pair} if pair else {}), "tasks": [task.name]})
    return found


def _is_too_much(error: Exception) -> bool:
    return isinstance(error, RefusedError) and error.status == 413


def _is_bad(line: Line | BadLine) -> TypeGuard[BadLine]:
    return isinstance(line, BadLine)


def _fault(line: Line, message: str) -> dict[str, Any]:
    return {"line": line.number, "error": message}
