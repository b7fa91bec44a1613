"""What a task is: what a head is asked, what it may answer, how it is measured, and where its data are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from onetrunk.protocol.names import check_task_name
from onetrunk.tasks.kinds import KINDS, get_kind
from onetrunk.tasks.metrics import METRICS, check_metric
from onetrunk.tasks.recipe import Recipe

Split = Literal["train", "dev"]


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _is_range(value: Any) -> bool:
    return (
        _is_list(value)
        and len(value) == 2
        and all(isinstance(one, (int, float)) and math.isfinite(one) for one in value)
    )


# In the file's words: pydantic's are Python's.
_FORMS: dict[str, tuple[Callable[[object], bool], str]] = {
    "labels": (_is_list, 'a list, as in ["ham", "spam"]'),
    "metrics": (_is_list, 'a list, as in ["accuracy", "macro_f1"]'),
    "range": (_is_range, "the lowest and the highest number, as in [0, 5]"),
    "options": (lambda value: isinstance(value, dict), 'a table, as in {output = "softmax"}'),
}


class Task(BaseModel):
    """A task, as its file says it.

    Attributes:
        name: names the head, its bundle and its output in the ensemble.
        kind: the kind of answer, a name in ``onetrunk.tasks.kinds``.
        form: one text, or a pair of texts.
        labels: the labels, in the order of their indices.
        range: lowest and highest number, for regression.
        options: what the kind can be told beside those.
        metrics: what is measured on the dev data; the first chooses the best epoch.
        train: where the train data are: a file, or ``hub:DATASET/CONFIG``.
        dev: where the dev data are.
        text_field: the field or column of the text.
        text_pair_field: the field or column of the second text.
        label_field: the field or column of the label.
        licence: what is known about the licence of the data; goes into the bundle and its card.
        recipe: how its head is trained.
        folder: the folder of its file, where relative data are looked for. Not a key of the file.
    """

    # A label that is written as a number in a data file may be one in the task file too.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    name: Annotated[str, AfterValidator(check_task_name)]
    kind: str = "classification"
    form: Literal["single", "pair"] = "single"
    labels: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None
    options: dict[str, Any] = {}
    metrics: tuple[str, ...]
    train: str
    dev: str
    text_field: str = "sentence"
    text_pair_field: str = "sentence2"
    label_field: str = "label"
    licence: str | None = None
    recipe: Recipe = Recipe()
    folder: Path = Path()

    def __hash__(self) -> int:
        """Hash the task's JSON, since its table of options has no hash. The configuration of an experiment needs it."""
        return hash(self.model_dump_json())

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Nothing: a task has no head yet whose answers something could be fitted to."""
        return {}

    @property
    def metric(self) -> str:
        """The metric that chooses the best epoch."""
        return self.metrics[0]

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"allowed are {', '.join(KINDS)}")
        return kind

    @field_validator("labels", "metrics", "range", "options", mode="before")
    @classmethod
    def _has_the_form(cls, value: object, info: ValidationInfo) -> object:
        fits, form = _FORMS[str(info.field_name)]
        if value is not None and not fits(value):
            raise ValueError(f"give {form}")
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"{name!r} is not known; allowed are {', '.join(METRICS)}")
        if not metrics:
            raise ValueError("give one or more, or leave the key out")
        return tuple(dict.fromkeys(metrics))

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, values: object) -> object:
        # Depends on the kind, so it cannot be a field's default.
        if isinstance(values, dict) and "metrics" not in values:
            kind = KINDS.get(str(values.get("kind", "classification")))
            # Of an unknown kind the next check tells.
            return {**values, "metrics": kind.metrics[:1] if kind else ("accuracy",)}
        return values

    @model_validator(mode="after")
    def _answer_fits_kind(self) -> Task:
        get_kind(self.kind).check(self)
        return self

    @model_validator(mode="after")
    def _form_fits_kind(self) -> Task:
        forms = get_kind(self.kind).forms
        if self.form not in forms:
            raise ValueError(f"form {self.form!r} is not for kind {self.kind}; allowed: {', '.join(forms)}")
        return self

    @model_validator(mode="after")
    def _metrics_fit_answer(self) -> Task:
        for name in self.metrics:
            check_metric(name, get_kind(self.kind), self.labels)
        return self
