"""How much a search may spend: epochs, learning rates, depths and lengths of students."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from onetrunk.tasks import Recipe
from onetrunk.training.runs import Distillation

# A small task would otherwise learn more about other tasks' texts than about its own.
_MOST_OTHER = 2.0


class SearchSettings(BaseModel):
    """Budgets of a search. The defaults are what docs/results/quality was made with.

    Attributes:
        epochs: of full fine-tuning and of teachers, for a task of up to ``large`` train rows; larger ones have one
            fewer.
        large: more train rows than this make a task a large one.
        learning_rate: of full fine-tuning and of teachers.
        dropout: of full fine-tuning and of teachers; None is the trunk's own.
        probe_epochs: of the probes: one-layer heads on every tap.
        probe_learning_rate: their learning rate.
        depths: how many taps get a teacher; one fewer for larger tasks.
        fork_epochs: of one-layer heads trained on the labels alone at full length, for tasks of up to ``large`` train
            rows: on little data, a teacher of few steps can know less than they come to.
        student_layers: lengths of students to try on each of these taps, in this order.
        student_epochs: a student's epochs, for each of its teacher's.
        student_learning_rate: of students.
        folded_epochs: epochs of a one-layer student, for each of its teacher's: its steps are nearly free, and it needs
            more of them.
        folded_learning_rate: of one-layer students.
        student_dropout: of students.
        temperature: of distillation.
        other_texts: texts of other tasks of the same form that its teacher labels for it; at most twice its own.
        enough: a student that keeps this share of full fine-tuning's score needs no longer one beside it.
        near: a teacher that keeps this share of the best one's score gets students too.
        batch_size: texts a step.
        seeds: how often baselines and chosen heads are trained, for tasks of up to ``large`` train rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=3, ge=1)
    large: int = Field(default=8_600, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    dropout: float | None = Field(default=0.0, ge=0, lt=1)
    probe_epochs: int = Field(default=2, ge=1)
    probe_learning_rate: float = Field(default=3e-4, gt=0)
    depths: int = Field(default=3, ge=1)
    fork_epochs: int = Field(default=10, ge=1)
    student_layers: tuple[int, ...] = (1, 2, 3)
    student_epochs: float = Field(default=1.0, gt=0)
    student_learning_rate: float = Field(default=2e-4, gt=0)
    folded_epochs: float = Field(default=3.0, gt=0)
    folded_learning_rate: float = Field(default=5e-4, gt=0)
    student_dropout: float | None = Field(default=0.0, ge=0, lt=1)
    temperature: float = Field(default=2.0, gt=0)
    other_texts: int = Field(default=5_000, ge=0)
    enough: float = Field(default=0.99, ge=0)
    near: float = Field(default=0.98, ge=0)
    batch_size: int = Field(default=32, ge=1)
    seeds: int = Field(default=3, ge=1)

    def tuning(self, rows: int, *, tap: int, layers: int, seed: int, max_length: int) -> Recipe:
        """How layers are fine-tuned: all of them, or those above a tap.

        Args:
            rows: train rows of the task.
            tap: the tap.
            layers: how many layers above it.
            seed: see Recipe.
            max_length: see Recipe.
        """
        return Recipe(
            tap=tap,
            layers=layers,
            epochs=self.epochs if rows <= self.large else max(1, self.epochs - 1),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            dropout=self.dropout,
            seed=seed,
            max_length=max_length,
        )

    def depths_for(self, rows: int) -> int:
        """How many taps get a teacher; ``rows`` are the task's train rows."""
        return self.depths if rows <= self.large else max(1, self.depths - 1)

    def probing(self, *, tap: int, seed: int, max_length: int, epochs: int | None = None) -> Recipe:
        """How a probe is trained, or for more epochs a one-layer head on the labels alone."""
        return Recipe(
            tap=tap,
            epochs=epochs or self.probe_epochs,
            learning_rate=self.probe_learning_rate,
            batch_size=self.batch_size,
            seed=seed,
            max_length=max_length,
        )

    def learning(self, teacher: Recipe, *, layers: int, seed: int) -> Recipe:
        """How a student of this teacher is trained."""
        folded = layers == 1
        epochs = self.folded_epochs if folded else self.student_epochs
        return teacher.model_copy(
            update={
                "layers": layers,
                "epochs": max(1, round(epochs * teacher.epochs)),
                "learning_rate": self.folded_learning_rate if folded else self.student_learning_rate,
                "dropout": self.student_dropout,
                "seed": seed,
            }
        )

    def distillation(self, teacher: str, rows: int) -> Distillation:
        """How a student of this teacher, given by its run's key, learns; ``rows`` are the task's train rows."""
        return Distillation(
            teacher=teacher,
            temperature=self.temperature,
            other_texts=round(min(_MOST_OTHER, self.other_texts / rows), 2),
        )
