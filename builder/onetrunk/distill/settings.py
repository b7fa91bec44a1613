"""The budgets of a search: epochs, learning rates, and the depths and lengths of heads that are tried."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from onetrunk.tasks import Recipe
from onetrunk.training.runs import Distillation

# The trunk whose learning rates the defaults are: on wider ones, as in the usual recipes, they are lower.
_DEFAULT_WIDTH = 384
_RATES = ("learning_rate", "probe_learning_rate", "student_learning_rate", "folded_learning_rate")
# A trunk's depth in parts, by which long heads are described.
_PARTS = 12

# A small task would otherwise learn more about other tasks' texts than about its own.
_MOST_OTHER_TEXTS = 2.0


class SearchSettings(BaseModel):
    """The budgets of a search. docs/results/quality was made with the defaults, before there were long heads.

    Attributes:
        epochs: The epochs of full fine-tuning and of teachers, for a task of up to ``large`` train rows; larger ones
            have one fewer.
        large: The number of train rows above which a task is large.
        learning_rate: The learning rate of full fine-tuning and of teachers.
        dropout: The dropout of full fine-tuning and of teachers; None is the trunk's own.
        probe_epochs: The epochs of the probes, one-layer heads on every tap.
        probe_learning_rate: The learning rate of the probes.
        depths: The number of taps that get a teacher; one fewer for large tasks.
        fork_epochs: The epochs of one-layer heads trained on the labels alone at full length, for small tasks: on
            little data, a teacher of few steps can know less than these heads learn.
        far: The share of full fine-tuning's score under which heads of one layer fall far short, so that long heads are
            tried.
        long_heads: The taps and the whole layers of long heads, in twelfths of the trunk's depth; their folded layer
            comes on top. They are tried in this order.
        student_layers: The lengths of students to try on each of these taps, in this order.
        student_epochs: A student's epochs as a multiple of its teacher's.
        student_learning_rate: The learning rate of students.
        folded_epochs: The epochs of a one-layer student as a multiple of its teacher's: its steps are nearly free, and
            it needs more of them.
        folded_learning_rate: The learning rate of one-layer students.
        student_dropout: The dropout of students.
        temperature: The temperature of distillation.
        other_texts: The number of texts of other tasks of the same form that the teacher labels for its student; at
            most twice the task's own.
        enough: The share of full fine-tuning's score at which no longer student, and no lower teacher, is tried.
        near: The share of the best teacher's score at which a teacher gets students too.
        batch_size: The number of texts a step.
        limbs: The identities of limbs that heads of one layer are tried on.
        mixed_precision: Run models of several layers in bf16 while they are trained; see ``Recipe``.
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
    far: float = Field(default=0.9, ge=0)
    long_heads: tuple[tuple[int, int], ...] = ((5, 2), (3, 4))
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
    mixed_precision: bool = False
    limbs: tuple[str, ...] = ()

    @classmethod
    def for_width(cls, width: int) -> SearchSettings:
        """Return the defaults for a trunk of this width.

        Args:
            width: The size of a hidden state.
        """
        share = min(1.0, _DEFAULT_WIDTH / width)
        return cls.model_validate({name: share * cls.model_fields[name].default for name in _RATES})

    def long_shapes(self, depth: int) -> list[tuple[int, int]]:
        """Return the tap and the number of layers of each long head, those without a whole layer left out.

        Args:
            depth: The number of the trunk's layers.
        """
        shapes = [(tap * depth // _PARTS, 1 + whole * depth // _PARTS) for tap, whole in self.long_heads]
        return [(tap, layers) for tap, layers in dict.fromkeys(shapes) if layers > 1]

    def tuning(self, rows: int, *, tap: int, layers: int, seed: int, max_length: int) -> Recipe:
        """Return the recipe of full fine-tuning (tap 0, all layers), of a teacher or of a long head.

        Args:
            rows: The number of the task's train rows.
            tap: The tap.
            layers: The number of layers that are trained above it.
            seed: See ``Recipe``.
            max_length: See ``Recipe``.
        """
        return Recipe(
            tap=tap,
            layers=layers,
            epochs=self.epochs if rows <= self.large else max(1, self.epochs - 1),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            dropout=self.dropout,
            mixed_precision=self.mixed_precision,
            seed=seed,
            max_length=max_length,
        )

    def depths_for(self, rows: int) -> int:
        """Return the number of taps that get a teacher for a task of this many train rows."""
        return self.depths if rows <= self.large else max(1, self.depths - 1)

    def probing(self, *, tap: int, seed: int, max_length: int, epochs: int | None = None) -> Recipe:
        """Return the recipe of a one-layer head on the labels alone: a probe, or a fork.

        Args:
            tap: The tap.
            seed: See ``Recipe``.
            max_length: See ``Recipe``.
            epochs: The number of epochs; None is a probe's.
        """
        return Recipe(
            tap=tap,
            epochs=epochs or self.probe_epochs,
            learning_rate=self.probe_learning_rate,
            batch_size=self.batch_size,
            seed=seed,
            max_length=max_length,
        )

    def learning(self, teacher: Recipe, *, layers: int, seed: int) -> Recipe:
        """Return the recipe of a student.

        Args:
            teacher: The recipe of its teacher.
            layers: The student's number of layers.
            seed: See ``Recipe``.
        """
        folded = layers == 1
        epochs = self.folded_epochs if folded else self.student_epochs
        return teacher.model_copy(
            update={
                "layers": layers,
                "epochs": max(1, round(epochs * teacher.epochs)),
                "learning_rate": self.folded_learning_rate if folded else self.student_learning_rate,
                "dropout": self.student_dropout,
                "mixed_precision": self.mixed_precision and not folded,
                "seed": seed,
            }
        )

    def distillation(self, teacher: str, rows: int) -> Distillation:
        """Return how a student learns.

        Args:
            teacher: The key of its teacher's run.
            rows: The number of the task's train rows.
        """
        return Distillation(
            teacher=teacher,
            temperature=self.temperature,
            other_texts=round(min(_MOST_OTHER_TEXTS, self.other_texts / rows), 2),
        )
