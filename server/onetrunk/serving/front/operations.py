"""What an endpoint for JSON says about itself: its route and its part of the OpenAPI document come from one place."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.responses import Response

from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import did_you_mean
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.body import check_parts
from onetrunk.serving.front.errors import ErrorForm, PlainError, plain_error
from onetrunk.serving.front.faults import FaultyRequestError, RequestBody, faults_of, shortened
from onetrunk.serving.front.service import Endpoint, Service
from onetrunk.serving.front.settings import MOST_TEXTS

T = TypeVar("T")

FIRST_FAULT: Any = Field(fail_fast=True)
"""Of a list, the first fault is told. One for each entry would take the event loop seconds, and much memory."""
ROWS: Any = Field(fail_fast=True, max_length=MOST_TEXTS)
"""The same of a list of texts. More of them than a front can be told to take are not even made into objects."""

JSON = "application/json"
# How long an answer that is made row by row keeps others waiting.
TURN_S = 0.01


@dataclass(frozen=True)
class Example:
    """A request that the server can answer.

    Attributes:
        body: The body, as JSON values; None for a request without one.
        query: The query behind the path.
        task: The task in the path, if the path has one.
    """

    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None


def _no_examples(catalogue: Catalogue) -> Mapping[str, Example]:
    return {}


@dataclass(frozen=True)
class Operation:
    """An endpoint.

    Attributes:
        method: ``GET`` or ``POST``.
        path: The path, in which ``{task}`` may stand.
        handler: Answers a request.
        tag: The protocol that it belongs to.
        summary: What it does, in one line.
        answer: The type of the answer's body.
        request: The schema of the request's body, if it has one.
        query: Parameter of the query -> what it means.
        examples: Returns requests that this server can answer, from what it serves.
        errors: Puts a failure into the protocol's form.
        error: The schema of that form.
    """

    method: str
    path: str
    handler: Endpoint
    tag: str
    summary: str
    answer: Any
    request: type[RequestBody] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    examples: Callable[[Catalogue], Mapping[str, Example]] = _no_examples
    errors: ErrorForm = plain_error
    error: type[BaseModel] = PlainError


class Dialect(ABC):
    """The endpoints of one protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @abstractmethod
    def operations(self) -> list[Operation]:
        """Return the endpoints."""


def parse(model: type[RequestBody], body: bytes) -> Any:
    """Return a request that was checked against its schema.

    Raises:
        FaultyRequestError: It is not JSON, or does not fit; the message names the field.
        RefusedError: It has more lists and objects than any request.
    """
    check_parts(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise FaultyRequestError(faults_of(error, model, body)) from None


def check_query(operation: Operation, query: QueryParams) -> None:
    """Check the names of the parameters of a request's query, if its endpoint reads any.

    The others' clients may send some to endpoints that read none, such as `api-version`.

    Raises:
        RefusedError: One is not known, or is given twice; the message names the first.
    """
    known = list(operation.query)
    for name, _ in query.multi_items() if known else ():
        if name not in known:
            raise RefusedError(
                422, f"{shortened(name)}: no such parameter{did_you_mean(name, known)}; allowed: {', '.join(known)}"
            )
        if len(query.getlist(name)) > 1:
            raise RefusedError(422, f"{name}: the parameter is given {len(query.getlist(name))} times; give it once")


async def in_turns(rows: Iterable[T]) -> AsyncIterator[T]:
    """Yield the rows of an answer. In between, others have their turns: a thousand vectors take about a second.

    A thread would be of no use, since Python writes JSON in one go, in which no other thread runs.

    Args:
        rows: The rows. If they are made one by one, that is a part of the turns.
    """
    began = time.perf_counter()
    for row in rows:
        yield row
        if time.perf_counter() - began > TURN_S:
            await asyncio.sleep(0)
            began = time.perf_counter()


async def json_list(rows: Iterable[Any]) -> str:
    """Return JSON values as a list in JSON, made in turns."""
    write = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = [write(row) async for row in in_turns(rows)]
    return f"[{','.join(parts)}]"


def json_object(**values: str) -> Response:
    """Return a response with an object whose values are in JSON already."""
    return Response(f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in values.items())}}}", media_type=JSON)


TEXT_EXAMPLES = {
    "single": ("A gripping, beautifully acted film.",),
    "pair": ("A man plays a flute.", "A woman slices a tomato."),
}
"""Form of a task -> a text for it, or two."""


def tasks_for_examples(catalogue: Catalogue, *kinds: str) -> list[TaskInfo]:
    """Return the first task of each form whose answers are read as one of these kinds."""
    found: dict[str, TaskInfo] = {}
    for task in catalogue.tasks.values():
        if task.read_kind in kinds:
            found.setdefault(task.form, task)
    return [found[form] for form in TEXT_EXAMPLES if form in found]
