"""What a search cost, against full fine-tuning, and against the full grid of depths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from benchmarks.study.recorded_study import RecordedStudy
from onetrunk.distill.trials import Trial, Trials


@dataclass(frozen=True)
class TaskSearch:
    """A task's search. Seconds are of the CPU.

    Attributes:
        task: the task.
        trials: what was tried.
        seconds: all of it.
        trunk_seconds: the trunk's pass over the task's texts, which everything else reads; not in ``seconds``.
        full_seconds: one full fine-tuning, mean over seeds; None where there is none yet.
    """

    task: str
    trials: tuple[Trial, ...]
    seconds: float
    trunk_seconds: float
    full_seconds: float | None

    @classmethod
    def of(cls, search: Trials, study: RecordedStudy) -> TaskSearch:
        """What a study has on a task's search."""
        baselines = [trial.cpu_seconds for trial in study.trials("baseline", search.task) if not trial.stopped]
        full = fmean(baselines) if baselines else None
        return cls(search.task, search.trials, search.cpu_seconds, search.trunk_cpu_seconds, full)

    def count(self, stage: str, *, stopped: bool | None = None) -> int:
        """How many trials of a stage there were, stopped or not."""
        return sum(trial.stage == stage and stopped in (None, trial.stopped) for trial in self.trials)


@dataclass(frozen=True)
class SearchCost:
    """All searches together. Seconds are of the CPU.

    Attributes:
        search_seconds: all searches.
        trunk_seconds: the trunk's passes, apart.
        full_seconds: one full fine-tuning of each task.
    """

    search_seconds: float
    trunk_seconds: float
    full_seconds: float

    @classmethod
    def of(cls, study: RecordedStudy) -> SearchCost | None:
        """None until every task has a search and a full fine-tuning: of some of them it would be another figure."""
        searches = task_searches(study)
        if not searches or {search.task for search in searches} != set(study.tasks):
            return None
        full = [search.full_seconds for search in searches if search.full_seconds is not None]
        if len(full) < len(searches):
            return None
        return cls(
            search_seconds=sum(search.seconds for search in searches),
            trunk_seconds=sum(search.trunk_seconds for search in searches),
            full_seconds=sum(full),
        )

    @property
    def ratio(self) -> float:
        """The searches, as a multiple of one full fine-tuning of each task."""
        return self.search_seconds / self.full_seconds

    @property
    def ratio_with_trunk(self) -> float:
        """The same with the trunk's passes counted as search."""
        return (self.search_seconds + self.trunk_seconds) / self.full_seconds


@dataclass(frozen=True)
class GridProof:
    """A task's search beside the full grid of its depths. Seconds are of the CPU.

    Attributes:
        task: the task.
        grid: a teacher on every tap, each trained to its end.
        depth: how many taps the trunk has to stand on.
        searched: the best teacher that the search trained to its end; None where there is no search.
        search_seconds: the search's probes and teachers, which the grid does the work of.
    """

    task: str
    grid: tuple[Trial, ...]
    depth: int
    searched: Trial | None
    search_seconds: float

    @classmethod
    def of(cls, task: str, study: RecordedStudy) -> GridProof | None:
        """None where there is no grid."""
        grid = tuple(trial for trial in study.trials("grid", task) if not trial.stopped)
        if not grid:
            return None
        search = study.trials("search", task)
        recipe = grid[0].spec.recipe
        return cls(
            task=task,
            grid=grid,
            depth=recipe.resolved_tap + recipe.layers,
            searched=best_teacher(search),
            search_seconds=sum(trial.cpu_seconds for trial in search if trial.stage in ("probe", "teacher")),
        )

    @property
    def best(self) -> Trial:
        """The grid's best."""
        return max(self.grid, key=lambda trial: trial.score)

    @property
    def grid_seconds(self) -> float:
        """The whole grid."""
        return sum(trial.cpu_seconds for trial in self.grid)

    @property
    def is_finished(self) -> bool:
        """Whether every tap has its teacher."""
        return len(self.grid) == self.depth


def task_searches(study: RecordedStudy) -> list[TaskSearch]:
    """The searches of the study's tasks, by task."""
    found = study.studies["search"]
    return [TaskSearch.of(found[task], study) for task in study.tasks if task in found]


def best_teacher(trials: Iterable[Trial]) -> Trial | None:
    """The best of the teachers that were not stopped."""
    whole = [trial for trial in trials if trial.stage == "teacher" and not trial.stopped]
    return max(whole, key=lambda trial: trial.score, default=None)
