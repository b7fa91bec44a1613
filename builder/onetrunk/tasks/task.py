"""A task: what a head is asked, what it may answer, how it is measured and trained, and where its data are."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from onetrunk.protocol.errors import did_you_mean
from onetrunk.protocol.head_json import OVERLAP, LongTexts, Overlap, Query
from onetrunk.protocol.names import check_task_name
from onetrunk.tasks.data_file import check_encoding
from onetrunk.tasks.kinds import KINDS, get_kind
from onetrunk.tasks.metrics import check_metric


class Recipe(BaseModel):
    """The training recipe: AdamW, a linear warm-up and decay, and the epoch that is best on the dev data.

    It is the table ``[recipe]`` of a task file, overridden by the command line.

    Attributes:
        tap: The tap that the head reads; None is the middle of the trunk, or the one that probes find best.
        layers: The number of the head's own layers; the last of them is folded.
        query: The query of the folded layer: the state of [CLS], the mean of a text's states, or their mean weighted by
            a learned vector.
        epochs: The number of passes over the train data.
        learning_rate: The peak learning rate, at the end of the warm-up.
        batch_size: The number of texts in a step.
        weight_decay: Applied to weight matrices, not to biases and LayerNorm.
        warmup: The share of all steps in which the learning rate rises.
        clip: The greatest norm of a step's gradient.
        dropout: The dropout probability everywhere; None is the trunk's own configuration.
        mixed_precision: Run the model's layers in bf16 while training. It pays on a GPU and on a CPU that is fast in
            bf16; on others it is slower.
        seed: The seed of the output layer's first weights, of the order of the texts and of the dropout.
        max_length: The longest text in tokens; longer ones are truncated, the longer one of a pair first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: int | None = Field(default=None, ge=0)
    layers: int = Field(default=1, ge=1)
    query: Query = "cls"
    epochs: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    mixed_precision: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_length: int = Field(default=128, ge=3)

    @property
    def resolved_tap(self) -> int:
        """The tap that was given or chosen.

        Raises:
            ValueError: There is none yet.
        """
        if self.tap is None:
            raise ValueError("the recipe has no tap yet")
        return self.tap


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _is_range(value: Any) -> bool:
    return (
        _is_list(value) and len(value) == 2 and all(type(one) in (int, float) and math.isfinite(one) for one in value)
    )


# In the words of TOML: pydantic's messages use those of Python.
_FORMS: dict[str, tuple[Callable[[object], bool], str]] = {
    "labels": (_is_list, 'a list, as in ["ham", "spam"]'),
    "metrics": (_is_list, 'a list, as in ["accuracy", "macro_f1"]'),
    "range": (_is_range, "the lowest and the highest number, as in [0, 5]"),
    "options": (lambda value: isinstance(value, dict), 'a table, as in {output = "softmax"}'),
}


def folded(label: str) -> str:
    """Return a label without what people write in different ways: case, blanks, and how accents are composed."""
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


class Task(BaseModel):
    """A task as its file describes it.

    Attributes:
        name: The name of the task, of its head, of its bundle and of its output in the ensembles.
        kind: The kind of answer, a name in ``onetrunk.tasks.kinds``.
        form: Whether the task reads one text or a pair.
        labels: The labels in the order of their indices.
        range: The lowest and the highest number, for regression.
        options: The options of the kind.
        metrics: The metrics that are measured on the dev data; the first selects the best epoch.
        train: The train data: a file, a folder of ``datasets.save_to_disk``, or ``hub:DATASET/CONFIG``.
        dev: The dev data, or the share of the train data that is kept for them.
        test: Data on which the finished head is scored, and nothing is chosen; None if there are none.
        text_field: The field or column of the text.
        text_pair_field: The field or column of the second text.
        label_field: The field or column of the label.
        encoding: The encoding of the data; None is UTF-8, or UTF-16 where a file begins with its mark.
        delimiter: The character between the columns of a table; None finds it in the header.
        quotes: Whether cells of a table may be quoted; None is yes for CSV, and for TSV if all quotation marks fit.
        fold_labels: Whether labels of the data count as the task's without regard to case and blanks.
        labels_from: The number of the first label, where data have numbers in place of labels; None is 0, if one is 0.
        empty_label: The label that an empty one stands for, such as ``none of these``; None refuses empty labels.
        label_separator: The character between several labels of a table's cell; None is ``|``.
        long_texts: What is read of a text that is longer than the server's longest: its beginning (``cut``), or all of
            it, in windows whose answers are pooled (``windows``).
        window_overlap: The share of a window that the next one reads again.
        licence: What is known about the licence of the data; copied into the bundle and its card.
        recipe: How the head is trained.
        folder: The folder of the task file, where relative data are looked for. It is not a key of the file.
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
    dev: float | str
    test: str | None = None
    text_field: str = "sentence"
    text_pair_field: str = "sentence2"
    label_field: str = "label"
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = None
    delimiter: str | None = None
    quotes: bool | None = None
    fold_labels: bool = False
    labels_from: Literal[0, 1] | None = None
    empty_label: str | None = None
    label_separator: str | None = None
    long_texts: LongTexts = "cut"
    window_overlap: Overlap = OVERLAP
    licence: str | None = None
    recipe: Recipe = Recipe()
    folder: Path = Path()

    def __hash__(self) -> int:
        """Hash the task's JSON: a dict of options has no hash of its own."""
        return hash(self.model_dump_json())

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Nothing is fitted: a task has no head yet. With this, a task is a ``KindConfig``."""
        return {}

    @property
    def metric(self) -> str:
        """The metric that selects the best epoch."""
        return self.metrics[0]

    @property
    def dev_share(self) -> float | None:
        """The share of the train data that are dev data; None if dev data are given."""
        return self.dev if isinstance(self.dev, float) else None

    @property
    def test_splits(self) -> tuple[Literal["test"], ...]:
        """The split of the test data, if there are any."""
        return () if self.test is None else ("test",)

    @property
    def how_read(self) -> dict[str, Any]:
        """What the task says about how its data are read, as far as it says anything. JSON values."""
        keys = {"encoding", "delimiter", "quotes", "fold_labels", "labels_from", "empty_label", "label_separator"}
        found: dict[str, Any] = self.model_dump(include=keys, exclude_defaults=True)
        return found | ({"dev": self.dev} if self.dev_share is not None else {})

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, as far as the task names others than the usual ones."""
        keys = {"text_field", "label_field", *(("text_pair_field",) if self.form == "pair" else ())}
        found: dict[str, str] = self.model_dump(include=keys, exclude_defaults=True)
        return found

    @property
    def answers(self) -> str:
        """What is answered, and from which columns, as text. The same file teaches another task something else."""
        return json.dumps([self.kind, self.form, self.labels, self.range, self.columns], sort_keys=True)

    @field_validator("dev", mode="before")
    @classmethod
    def _dev_is_a_place_or_a_share(cls, dev: object) -> object:
        if not isinstance(dev, str) and not (isinstance(dev, float) and 0 < dev < 1):
            raise ValueError("give a file, or a share of the train data between 0 and 1, as in 0.2")
        return dev

    @field_validator("delimiter", "label_separator")
    @classmethod
    def _is_one_character(cls, given: str | None) -> str | None:
        if given is not None and (len(given) != 1 or given in '"\r\n' or given.isalnum()):
            raise ValueError('give one character, as in ";", "\\t" or "|"')
        return given

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        if kind not in KINDS:
            trained = [name for name, known in KINDS.items() if known.has_weights]
            raise ValueError(f"it is not known{did_you_mean(kind, trained)}; allowed are {', '.join(trained)}")
        return kind

    @field_validator("labels", "metrics", "range", "options", mode="before")
    @classmethod
    def _has_the_form(cls, value: object, info: ValidationInfo) -> object:
        fits, form = _FORMS[str(info.field_name)]
        if value is not None and not fits(value):
            raise ValueError(f"give {form}")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _boolean_labels(cls, labels: Any) -> Any:
        # Spelled as in TOML and JSON.
        return [json.dumps(one) if isinstance(one, bool) else one for one in labels] if _is_list(labels) else labels

    @field_validator("metrics")
    @classmethod
    def _metrics_are_given(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        if not metrics:
            raise ValueError("give one or more, or omit the key")
        return tuple(dict.fromkeys(metrics))

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, values: object) -> object:
        # It depends on the kind, so it cannot be a field's default.
        if isinstance(values, dict) and "metrics" not in values:
            kind = KINDS.get(str(values.get("kind", "classification")))
            # An unknown kind is reported by the next check.
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
    def _overlap_fits_long_texts(self) -> Task:
        if "window_overlap" in self.model_fields_set and self.long_texts == "cut":
            raise ValueError('window_overlap is for long_texts = "windows": add that, or leave window_overlap out')
        return self

    @model_validator(mode="after")
    def _labels_fit_how_they_are_read(self) -> Task:
        labels = self.labels or ()
        composed: dict[str, str] = {}
        for label in labels:
            if composed.setdefault(unicodedata.normalize("NFC", label), label) != label:
                raise ValueError(
                    f"labels has {label!r:.60} twice: they look equal, and only their accents are composed in two ways "
                    "(Unicode NFC and NFD): keep one"
                )
        if self.fold_labels and len({folded(label) for label in labels}) < len(labels):
            raise ValueError("fold_labels: two of the labels differ only in case or blanks")
        if self.empty_label is not None and self.kind != "classification":
            raise ValueError(
                f"empty_label is one of the labels of a classification task; not for kind {self.kind}: leave it out"
                + (", as a text without a label has none" if self.kind == "multilabel" else "")
            )
        if self.empty_label is not None and self.empty_label not in labels:
            raise ValueError(f"empty_label is one of the labels; found {self.empty_label!r:.60}: add it to labels")
        if self.label_separator is not None and self.kind != "multilabel":
            raise ValueError(
                f"label_separator is for kind multilabel, whose cells have several labels; not {self.kind}"
            )
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> Task:
        keys = ("text_field", *(("text_pair_field",) if self.form == "pair" else ()), "label_field")
        seen: dict[str, str] = {}
        for key in keys:
            name = getattr(self, key)
            # Names that differ only in case may be two columns of a file.
            if (other := seen.setdefault(name, key)) != key:
                raise ValueError(f"{other} and {key} name one column, {name!r:.60}: each has a column of its own")
        return self

    @model_validator(mode="after")
    def _metrics_fit_answer(self) -> Task:
        for name in self.metrics:
            check_metric(name, get_kind(self.kind), self.labels)
        return self


@dataclass(frozen=True)
class FittedTask:
    """The ``KindConfig`` of a task with what was fitted for one head.

    Attributes:
        task: The task.
        fitted: What the kind fitted to the dev data.
    """

    task: Task
    fitted: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """See ``Task``."""
        return self.task.labels

    @property
    def range(self) -> tuple[float, float] | None:
        """See ``Task``."""
        return self.task.range

    @property
    def options(self) -> Mapping[str, Any]:
        """See ``Task``."""
        return self.task.options
