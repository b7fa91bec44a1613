"""What a server says it serves: its tasks, learned from the ensemble's parameter ``onetrunk``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from onetrunk.client.kinds import reader_of
from onetrunk.client.task_info import TaskInfo
from onetrunk.protocol.errors import ServerError, UnknownTask

SCHEMA = 1


class _Parameter(BaseModel):
    """The JSON in the ensemble's parameter ``onetrunk``."""

    trunk: str
    max_length: int = Field(ge=1)
    buckets: tuple[int, ...] = Field(min_length=1)
    tasks: dict[str, TaskInfo]

    @model_validator(mode="before")
    @classmethod
    def _tasks_know_their_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"schema {found!r}, this client reads schema {SCHEMA}: bring client and repository to one version"
            )
        if isinstance(data.get("tasks"), dict):
            named = {
                name: {**task, "name": name} if isinstance(task, dict) else task for name, task in data["tasks"].items()
            }
            data = {**data, "tasks": named}
        return data


@dataclass(frozen=True)
class Catalogue:
    """Everything a call needs to know about the server.

    Attributes:
        trunk: identity of the trunk under all heads.
        max_batch_size: most rows in one request.
        max_length: most tokens in one row.
        buckets: the padded lengths, rising.
        tasks: name -> task.
    """

    trunk: str
    max_batch_size: int
    max_length: int
    buckets: tuple[int, ...]
    tasks: Mapping[str, TaskInfo]

    def named(self, names: Iterable[str]) -> tuple[TaskInfo, ...]:
        """The tasks of these names, each once, in the order they were named.

        Raises:
            UnknownTask: one of them is not served; the message lists those that are.
        """
        wanted = dict.fromkeys(names)
        unknown = [name for name in wanted if name not in self.tasks]
        if unknown:
            known = sorted(self.tasks)
            close = difflib.get_close_matches(str(unknown[0]), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UnknownTask(f"unknown task {unknown[0]!r}{hint} Served: {', '.join(known) or 'none'}")
        return tuple(self.tasks[name] for name in wanted)


def read_catalogue(config: Any) -> Catalogue:
    """Reads the configuration of an ensemble, ``model_config_pb2.ModelConfig``.

    Raises:
        ServerError: it is not an ensemble that build-repo wrote, or of a schema that this client does not read.
    """
    if "onetrunk" not in config.parameters:
        raise ServerError(
            f"model {config.name!r} has no parameter 'onetrunk': build-repo did not write this repository"
        )
    if config.max_batch_size < 1:
        raise ServerError(f"model {config.name!r} has max_batch_size {config.max_batch_size}, expected 1 or more")
    try:
        parameter = _Parameter.model_validate_json(config.parameters["onetrunk"].string_value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ServerError(
            f"parameter 'onetrunk' of model {config.name!r}: {where + ': ' if where else ''}{first['msg']}"
        ) from None
    for name, task in parameter.tasks.items():
        reader = reader_of(task)
        if reader and (fault := reader.fault(task)):
            raise ServerError(f"parameter 'onetrunk' of model {config.name!r}: tasks.{name}: {fault}")
    return Catalogue(
        trunk=parameter.trunk,
        max_batch_size=config.max_batch_size,
        max_length=parameter.max_length,
        buckets=tuple(sorted(parameter.buckets)),
        tasks=MappingProxyType(parameter.tasks),
    )
