"""`POST /v1/models/{task}:predict` and `GET /v1/models/{task}`, as in version 1 of KServe's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import READERS
from onetrunk.protocol.names import MULTITASK
from onetrunk.serving.front.faults import RequestBody
from onetrunk.serving.front.operations import (
    FIRST_FAULT,
    ROWS,
    TEXT_EXAMPLES,
    Dialect,
    Example,
    Operation,
    json_list,
    json_object,
    parse,
    tasks_for_examples,
)
from onetrunk.serving.front.records import TaskRecord


class Instance(BaseModel):
    """A text, or two.

    Attributes:
        text: The text.
        text_pair: The second text.
    """

    model_config = ConfigDict(strict=True)

    text: str
    text_pair: str | None = None


class InstancesRequest(RequestBody):
    """A request to `/v1/models/{task}:predict`. Fields that are not listed are ignored.

    Attributes:
        instances: The texts: each a string, a list of two strings, or an object.
    """

    such_as: ClassVar[str] = '{"instances": ["A text."]}'

    instances: Annotated[
        list[str | Annotated[list[str], Field(min_length=2, max_length=2), FIRST_FAULT] | Instance],
        Field(min_length=1),
        ROWS,
    ]

    def rows(self) -> list[Instance]:
        """Return the texts in one form."""
        found: list[Instance] = []
        for one in self.instances:
            if isinstance(one, Instance):
                found.append(one)
            else:
                text, pair = one if isinstance(one, list) else (one, None)
                found.append(Instance(text=text, text_pair=pair))
        return found


class PredictionsAnswer(BaseModel):
    """The answer to a request to `/v1/models/{task}:predict`.

    Attributes:
        predictions: One for each instance, in order: what the task answers, or, of `multitask`, task -> answer.
    """

    model_config = ConfigDict(extra="forbid")

    predictions: list[TaskRecord | dict[str, TaskRecord]]


class ReadyAnswer(BaseModel):
    """Whether a task can be asked.

    Attributes:
        name: The task.
        ready: Whether the model server says that it is ready.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    ready: bool


class KserveV1(Dialect):
    """The endpoints."""

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation(
                method="POST",
                path="/v1/models/{task}:predict",
                handler=self.predict,
                tag="KServe v1",
                summary="Ask one task about texts, or every task that fits them as `multitask`",
                request=InstancesRequest,
                answer=PredictionsAnswer,
                examples=_examples,
            ),
            Operation(
                method="GET",
                path="/v1/models/{task}",
                handler=self.ready,
                tag="KServe v1",
                summary="Say whether a task can be asked",
                answer=ReadyAnswer,
                examples=_examples,
            ),
        ]

    async def predict(self, request: Request) -> Response:
        """Answer instances with predictions."""
        name = request.path_params["task"]
        tasks = None if name == MULTITASK else [name]
        await self._service.check_tasks(tasks)
        asked: InstancesRequest = parse(InstancesRequest, await self._service.body(request))
        rows = asked.rows()
        answers = await self._service.predict([row.text for row in rows], [row.text_pair for row in rows], tasks)
        records = ({task: said.record(None) for task, said in answer.predictions.items()} for answer in answers)
        predictions = (record if tasks is None else record[name] for record in records)
        return json_object(predictions=await json_list(predictions))

    async def ready(self, request: Request) -> Response:
        """Say whether a task is ready: 503 if it is served, but the model server is not ready."""
        name = request.path_params["task"]
        await self._service.check_tasks(None if name == MULTITASK else [name])
        ready = await self._service.is_ready()
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)


def _examples(catalogue: Catalogue) -> Mapping[str, Example]:
    found: dict[str, Example] = {}
    for task in tasks_for_examples(catalogue, *READERS):
        instance = dict(zip(("text", "text_pair"), TEXT_EXAMPLES[task.form], strict=False))
        found[task.form] = Example({"instances": [instance]}, task=task.name)
    return found
