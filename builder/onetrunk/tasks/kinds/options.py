"""The table ``[options]`` of a task file: what one kind can be told and another cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.toml_file import did_you_mean

T = TypeVar("T", bound="Options")


class Options(BaseModel):
    """No options. A kind that has some derives a model of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[T], given: Mapping[str, Any]) -> T:
        """Reads and checks the options of a task.

        Raises ValueError with what was found and what is allowed.
        """
        if unknown := sorted(set(given) - set(cls.model_fields)):
            allowed = ", ".join(cls.model_fields) or "none"
            hint = did_you_mean(unknown[0], list(cls.model_fields))
            raise ValueError(f"options has {', '.join(unknown)}{hint}; allowed for this kind: {allowed}")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            # Of the forms that a value may have, the one that fits furthest is the one that was meant.
            fault = max(error.errors(), key=lambda one: len(one["loc"]))
            rule = fault["msg"].removeprefix("Value error, ")
            # Between the first and the last stand names of pydantic's.
            where = ".".join(str(part) for part in dict.fromkeys((fault["loc"][0], *fault["loc"][2:])))
            raise ValueError(f"options.{where}: {rule} (found {fault['input']!r:.60})") from None
