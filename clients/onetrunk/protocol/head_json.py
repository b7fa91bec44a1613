"""The schema of ``head.json``, the description of a trained head in its bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from onetrunk.protocol.names import check_task_name

HEAD_JSON = "head.json"

Form = Literal["single", "pair"]
"""Whether a task reads one text or a pair of texts."""

Query = Literal["cls", "mean", "learned"]
"""The query of a head's last layer: the state of [CLS], the mean of all states, or a learned vector."""


class HeadJson(BaseModel):
    """``head.json``: what a head answers, which hidden state it reads, and how it was trained.

    Whether the answer fits its kind is checked where the kinds are known: by ``HeadSpec`` of the builder.

    Attributes:
        schema_version: The version of this schema.
        task: The task, which is also the name of the head's output.
        kind: The kind of task, such as ``classification``.
        form: Whether the task reads one text or a pair.
        labels: The labels in the order of the scores; None if the kind has none.
        range: The lowest and the highest number of a regression; None for other kinds.
        options: The options of the kind, as the task file gives them.
        fitted: What was fitted on the dev data after training, such as thresholds.
        tap: The number of trunk layers below the head.
        layers: The number of the head's own layers.
        query: The query of its last layer.
        trunk: The identity of the trunk that it was trained on.
        width: The width of the trunk's hidden states.
        max_length: The longest text that it was trained on, in tokens.
        metric: The metric by which the best epoch was chosen.
        scores: Metric -> score on the dev data.
        recipe: The training recipe.
        data: The origin and the hashes of the data.
        story: How the head came about, such as its teacher.
        licence: What is known about the licence of the data.
        created: The date of training, in ISO 8601.
        onetrunk_version: The version of OneTrunk that trained it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: Annotated[str, AfterValidator(check_task_name)]
    kind: str
    form: Form
    labels: tuple[str, ...] | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    options: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    tap: int = Field(ge=0)
    layers: int = Field(ge=1)
    query: Query = "cls"
    trunk: str
    width: int = Field(ge=1)
    max_length: int = Field(ge=3)
    metric: str
    scores: dict[str, FiniteFloat]
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    story: dict[str, Any] = {}
    licence: str | None = None
    created: str
    onetrunk_version: str
