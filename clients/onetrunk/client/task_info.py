"""One task as a server says it serves it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TaskInfo(BaseModel):
    """One task as it is served.

    What a kind says beside these attributes is kept too, as attributes of its name: ``thresholds`` of multilabel,
    ``none_below`` of classification, ``scheme`` of tagging.

    Attributes:
        name: the task, and the name of its output.
        kind: ``classification``, ``multilabel``, ``regression``, ``tagging``, or one that this client may not know.
        reads_as: the kind whose answers are read in the same way, where it is not its own.
        form: whether it reads one text or a pair.
        labels: in the order of its scores, of tagging the types of spans; None where the kind has none.
        range: lowest and highest number of a regression; None for the other kinds.
        metric: name of the metric it is judged by.
        tap: number of trunk layers below its head.
        layers: number of its head's own layers.
        version: version of its head model.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    kind: str
    reads_as: str | None = None
    form: Literal["single", "pair"]
    labels: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None
    metric: str
    tap: int = Field(ge=0)
    layers: int = Field(ge=1)
    version: int = Field(ge=1)
