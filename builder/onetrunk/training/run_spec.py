"""What a recorded training is: everything that its result depends on, and the key it is found by."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from onetrunk.tasks import Recipe

Role = Literal["full", "teacher", "student", "fork"]
Start = Literal["teacher", "trunk", "random"]


class Distillation(BaseModel):
    """How a student learns from its teacher.

    Attributes:
        teacher: key of the teacher's run.
        start: where the student's layers come from: the teacher's lowest layers (the paper's choice), the trunk's own
            layers at the same place, or nowhere (random).
        soft: learn the teacher's outputs; without it, the labels alone.
        temperature: how much the teacher's probabilities are softened.
        state_weight: weight of the difference between the two last states; 0 leaves it out.
        other_texts: texts of other tasks of the same form, labelled by the teacher, for each of the task's own texts.
        masked_texts: copies of the task's own texts with words masked, labelled by the teacher, for each of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    start: Start = "teacher"
    soft: bool = True
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    state_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    other_texts: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    masked_texts: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class RunSpec(BaseModel):
    """One training.

    Attributes:
        task: the task's name.
        role: ``full``: the whole encoder is fine-tuned, embeddings too. ``teacher``: all layers above the tap are.
            ``student``: a shorter head learns from a teacher. ``fork``: a head is trained on the labels alone,
            starting from the trunk's own layers.
        recipe: how; with its tap and layers.
        distillation: for a student.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    role: Role
    recipe: Recipe
    distillation: Distillation | None = None

    def key(self, *facts: str) -> str:
        """A hash over the spec and the facts that are not in it: trunk, data, device."""
        # Without what is at its default: a new setting, off by default, does not make old runs new ones.
        said = self.model_dump_json(exclude_defaults=True)
        return hashlib.sha256("\0".join([said, *facts]).encode()).hexdigest()[:16]
