"""The tasks and limits of a server, read from the parameter ``onetrunk`` of its ensemble."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo, read_ensemble_info
from onetrunk.protocol.errors import ServerError, UnknownTask, did_you_mean
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
            raise unknown_task(unknown[0], self.tasks)
        return tuple(self.tasks[name] for name in wanted)


def unknown_task(name: object, served: Collection[str]) -> UnknownTask:
    """Return the error for a name that is no task's.

    Args:
        name: The name, or what was given in its place. Of a long one, the beginning is repeated.
        served: The tasks that are served.
    """
    known, word = sorted(served), str(name)
    shown = word if len(word) <= _LONGEST_NAME else f"{word[:_LONGEST_NAME]}..."
    return UnknownTask(f"unknown task {shown!r}{did_you_mean(word, known)}. Served: {', '.join(known) or 'none'}")


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
