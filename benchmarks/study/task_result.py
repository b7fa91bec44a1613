"""What one task came to: full fine-tuning, the teacher, and the head that the plan chose."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.recorded_study import RecordedStudy
from benchmarks.study.seed_scores import SeedScores
from onetrunk.protocol.head_json import Query
from onetrunk.training.runs import RunSpec


@dataclass(frozen=True)
class TaskResult:
    """Scores are dev scores by the task's first metric, as shares; None is what has not been measured.

    Attributes:
        task: the task.
        metric: that metric.
        full: full fine-tuning of the whole encoder.
        teacher: the run that the chosen head learned from; None also where it learned from labels alone.
        student: the chosen head.
        new_student: the same without the run by which the plan chose it.
        tap: where the chosen head stands.
        layers: its layers.
        query: of its folded layer.
    """

    task: str
    metric: str | None
    full: SeedScores | None
    teacher: float | None
    student: SeedScores | None
    new_student: SeedScores | None
    tap: int | None
    layers: int | None
    query: Query | None

    @classmethod
    def of(cls, task: str, study: RecordedStudy) -> TaskResult:
        """What a study has on a task."""
        head = study.plan.tasks.get(task) if study.plan else None
        spec = study.spec(head.run) if head else None
        teacher = study.score(spec.distillation.teacher) if spec and spec.distillation else None
        students = _runs_of(spec, study) if spec else {}
        # What was trained is what counts; a plan's tap may have been changed by hand.
        recipe = spec.recipe if spec else head
        return cls(
            task=task,
            metric=study.metric(task),
            full=_over_seeds([trial.score for trial in study.trials("baseline", task) if not trial.stopped]),
            teacher=teacher,
            student=_over_seeds(list(students.values())),
            new_student=_over_seeds([score for key, score in students.items() if head and key != head.run]),
            tap=recipe.tap if recipe else None,
            layers=recipe.layers if recipe else None,
            query=recipe.query if recipe else None,
        )

    @property
    def retention(self) -> float | None:
        """What the chosen head keeps of full fine-tuning; None also where that scores nothing to keep."""
        if self.full is None or self.student is None or not self.full.mean > 0:
            return None
        return self.student.mean / self.full.mean


def _over_seeds(scores: list[float]) -> SeedScores | None:
    return SeedScores(tuple(scores)) if scores else None


def _runs_of(spec: RunSpec, study: RecordedStudy) -> dict[str, float]:
    """Key -> score of every finished run that differs from this one in its seed alone, by seed.

    An earlier plan may have left seeds of another head behind: these do not count.
    """
    wanted = _with_seed(spec, 0)
    found: dict[str, tuple[int, float]] = {}
    for name in ("search", "seeds"):
        for trial in study.trials(name, spec.task):
            if not trial.stopped and _with_seed(trial.spec, 0) == wanted:
                found[trial.key] = (trial.spec.recipe.seed, trial.score)
    return {key: score for key, (_, score) in sorted(found.items(), key=lambda item: item[1][0])}


def _with_seed(spec: RunSpec, seed: int) -> RunSpec:
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"seed": seed})})
