"""What is asked for: a model, and the texts that it is adopted with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onetrunk.adopt.classifier import Classifier
from onetrunk.tasks.text_file import TextRows


@dataclass(frozen=True)
class ModelRequest:
    """A model to be adopted.

    Attributes:
        classifier: The model.
        texts: The texts that it reads.
        dev: Labelled dev data, if there are any: a file in any format of task data.
        label_field: The column of their labels.
        range: The lowest and the highest number, for regression; None takes it from the model's answers.
    """

    classifier: Classifier
    texts: TextRows
    dev: Path | None = None
    label_field: str = "label"
    range: tuple[float, float] | None = None
