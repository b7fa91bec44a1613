"""What is asked for: a model, the texts that it reads, and labelled texts to measure it on; and the task they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onetrunk.adopt.classifier import Adoptable
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Examples, Task, read_examples
from onetrunk.tasks.task_file import DEV_SHARE
from onetrunk.tasks.text_file import TextRows, find_columns

# Numbers of labelled rows are read on this scale until the range of the model's answers is known.
_ANY_NUMBER = (-1e6, 1e6)


@dataclass(frozen=True)
class ModelRequest:
    """A model to be adopted.

    Attributes:
        classifier: The model, or a file of soft labels.
        texts: The texts that it reads, or that the file is about.
        dev: Labelled dev data, if there are any: a file in any format of task data.
        label_field: The column of their labels.
        text_field: The column of their texts; None, or one that they do not have, looks for one that is usually called
            so.
        pair_field: The same for the second texts.
        skip_bad_rows: Whether labelled rows that cannot be used are left out, with a note, instead of refused.
        range: The lowest and the highest number, for regression; None takes it from the model's answers and the labels.
    """

    classifier: Adoptable
    texts: TextRows
    dev: Path | None = None
    label_field: str = "label"
    text_field: str | None = None
    pair_field: str | None = None
    skip_bad_rows: bool = False
    range: tuple[float, float] | None = None

    def task(self, range: tuple[float, float] | None = None, *, dev_share: float = DEV_SHARE) -> Task:
        """Return the task that the model answers.

        Args:
            range: For regression, its range if the request has none; None reads numbers of any size.
            dev_share: The share of the texts that is kept, where there are no labelled data.

        Raises:
            UserError: A task cannot have such labels, or such a range.
        """
        classifier, texts = self.classifier, self.texts
        values: dict[str, Any] = {
            "name": classifier.name,
            "kind": classifier.kind,
            "form": texts.form,
            "train": texts.source,
            "dev": str(self.dev.resolve()) if self.dev is not None else dev_share,
            "label_field": self.label_field,
        }
        if texts.fields:
            values["text_field"] = texts.fields[0]
            values["text_pair_field"] = texts.fields[-1]
        if classifier.kind == "regression":
            values["range"] = self.range or range or _ANY_NUMBER
        else:
            values["labels"] = classifier.labels
        if classifier.kind == "tagging":
            # The order of tags cannot be learned from their probabilities alone.
            values["options"] = {"output": "softmax"}
        try:
            return Task.model_validate(values)
        except ValidationError as error:
            rule = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"{classifier.folder}: no task can be made of it: {rule}") from error

    def labelled(self, task: Task) -> Examples | None:
        """Read the labelled dev data, whose columns may have other names than those of the texts; None without any.

        Args:
            task: The task.

        Raises:
            UserError: The data cannot be read, or rows cannot be used.
        """
        if self.dev is None:
            return None
        fields = find_columns(self.dev, form=task.form, text_field=self.text_field, pair_field=self.pair_field)
        columns = task.model_copy(update={"text_field": fields[0], "text_pair_field": fields[-1]})
        return read_examples(columns, "dev", skip_bad_rows=self.skip_bad_rows)

    def labelled_numbers(self) -> list[float]:
        """Return the labels of the labelled dev data of a regression model; none if there are none.

        Raises:
            UserError: See ``labelled``.
        """
        labelled = self.labelled(self.task())
        low, high = self.range or _ANY_NUMBER
        return [] if labelled is None else [low + float(one) * (high - low) for one in labelled.targets]
