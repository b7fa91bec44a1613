"""The tasks and limits of a server, read from the parameter ``onetrunk`` of its ensemble."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo, read_ensemble_info
from onetrunk.protocol.errors import ServerError, UnknownTask
from onetrunk.protocol.names import ONETRUNK_PARAMETER, TOKEN_COUNT

_LONGEST_NAME = 64


@dataclass(frozen=True)
class Catalogue:
    """Everything that a call needs to know about the server.

    Attributes:
        trunk: The identity of the trunk below all heads.
        max_batch_size: The most rows in one request.
        max_length: The most tokens in one row.
        buckets: The padded lengths in tokens, in ascending order.
        tasks: Name -> task.
        counts_tokens: Whether the server says how many tokens it read of a text.
    """

    trunk: str
    max_batch_size: int
    max_length: int
    buckets: tuple[int, ...]
    tasks: Mapping[str, TaskInfo]
    counts_tokens: bool = False

    def named(self, names: Iterable[str]) -> tuple[TaskInfo, ...]:
        """Return the tasks of these names, each once, in the order of the names.

        Raises:
            UnknownTask: A task is not served. The message lists those that are.
        """
        wanted = dict.fromkeys([names] if isinstance(names, str) else names)
        unknown = [name for name in wanted if name not in self.tasks]
        if unknown:
            known, name = sorted(self.tasks), str(unknown[0])
            if len(name) > _LONGEST_NAME:  # which is neither compared nor repeated
                name, close = f"{name[:_LONGEST_NAME]}...", []
            else:
                close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UnknownTask(f"unknown task {name!r}{hint} Served: {', '.join(known) or 'none'}")
        return tuple(self.tasks[name] for name in wanted)


def read_catalogue(config: Any) -> Catalogue:
    """Read the configuration of an ensemble, a ``model_config_pb2.ModelConfig``.

    Raises:
        ServerError: ``build-repo`` did not write the ensemble, or in a schema that this client does not read.
    """
    if ONETRUNK_PARAMETER not in config.parameters:
        raise ServerError(
            f"model {config.name!r} has no parameter {ONETRUNK_PARAMETER!r}: build-repo did not write this repository"
        )
    if config.max_batch_size < 1:
        raise ServerError(f"model {config.name!r} has max_batch_size {config.max_batch_size}, expected 1 or more")
    where = f"parameter {ONETRUNK_PARAMETER!r} of model {config.name!r}"
    try:
        info = read_ensemble_info(config.parameters[ONETRUNK_PARAMETER].string_value)
    except ValueError as error:
        raise ServerError(f"{where}: {error}") from None
    for name, task in info.tasks.items():
        reader = reader_of(task)
        if reader and (missing := reader.missing(task)):
            raise ServerError(f"{where}: tasks.{name}: {missing}")
    return Catalogue(
        trunk=info.trunk,
        max_batch_size=config.max_batch_size,
        max_length=info.max_length,
        buckets=tuple(sorted(info.buckets)),
        tasks=MappingProxyType(info.tasks),
        counts_tokens=any(output.name == TOKEN_COUNT for output in config.output),
    )
