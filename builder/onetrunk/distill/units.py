"""The pieces that a study is divided into, so that they can run side by side, here or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.study.ablation import run_ablation
from benchmarks.study.grid import run_grid
from onetrunk.distill.baseline import run_baseline
from onetrunk.distill.depths import search_task
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.status import StatusBoard
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.training.execute import execute
from onetrunk.training.run_spec import RunSpec
from onetrunk.training.workbench import SPLITS, BenchSettings, Workbench, open_workbench

UnitName = Literal["trunk", "baseline", "search", "grid", "ablation", "student"]


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        name: what it does.
        task: for which task.
        seed: of a baseline.
        spec: of a student that is trained as it stands.
    """

    name: UnitName
    task: str
    seed: int = 0
    spec: RunSpec | None = None

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.seed or self.name == "student" else ""
        return f"{self.task}: {self.name}{seed}"


def run_unit(unit: Unit, bench_settings: BenchSettings, settings: SearchSettings) -> Unit:
    """Does a piece of work in this process, and gives it back when it is done. What comes of it is on disk."""
    bench = open_workbench(bench_settings)
    board = StatusBoard(bench.root / "status")
    with board.reporting(str(unit)) as progress:
        _WORK[unit.name](unit, bench, settings, _ends_with_parent(progress))
    return unit


def _ends_with_parent(progress: ProgressCallback) -> ProgressCallback:
    """Raises from a step of training when the process that started this one is no more.

    A command that is killed cannot end its workers, which would go on beside those of the next command.
    """
    if multiprocessing.current_process().name == "MainProcess":
        # The command itself, which may outlive the shell that it was given to; or Ray's worker, which Ray ends.
        return progress
    parent = os.getppid()

    def report(what: str, done: int, total: int) -> None:
        if os.getppid() != parent:
            raise OneTrunkError("the command that this belongs to was killed")
        progress(what, done, total)

    return report


def _trunk(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    for split in SPLITS:
        bench.states(unit.task, split, range(bench.trunk.depth), progress)


def _baseline(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    run_baseline(unit.task, unit.seed, bench, settings, progress)


def _search(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    search_task(unit.task, bench, settings, progress)


def _grid(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    run_grid(unit.task, bench, settings, progress)


def _ablation(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    run_ablation(unit.task, bench, settings, progress)


def _student(unit: Unit, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
    assert unit.spec is not None
    execute(unit.spec, bench, progress=progress)


_WORK: dict[UnitName, Callable[[Unit, Workbench, SearchSettings, ProgressCallback], None]] = {
    "trunk": _trunk,
    "baseline": _baseline,
    "search": _search,
    "grid": _grid,
    "ablation": _ablation,
    "student": _student,
}
