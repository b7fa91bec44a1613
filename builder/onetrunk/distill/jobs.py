"""The pieces that a study is divided into, so that they can run side by side, here or on a cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from benchmarks.study.ablation import run_ablation
from benchmarks.study.grid import run_grid
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, search_task
from onetrunk.progress import Progress
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.training.experiment import SPLITS, Experiment, ExperimentConfig, open_experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute

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


def run_unit(unit: Unit, config: ExperimentConfig, settings: SearchSettings) -> Unit:
    """Does a piece of work in this process, and gives it back when it is done. What comes of it is on disk."""
    experiment = open_experiment(config)
    board = StatusBoard(experiment.cache_root / "status")
    with board.reporting(str(unit)) as progress:
        _WORK[unit.name](unit, experiment, settings, _ends_with_parent(progress))
    return unit


def _ends_with_parent(progress: Progress) -> Progress:
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


def _trunk(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    for split in SPLITS:
        experiment.states(unit.task, split, range(experiment.trunk.depth), progress)


def _baseline(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    run_baseline(unit.task, unit.seed, experiment, settings, progress)


def _search(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    search_task(unit.task, experiment, settings, progress)


def _grid(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    run_grid(unit.task, experiment, settings, progress)


def _ablation(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    run_ablation(unit.task, experiment, settings, progress)


def _student(unit: Unit, experiment: Experiment, settings: SearchSettings, progress: Progress) -> None:
    assert unit.spec is not None
    execute(unit.spec, experiment, progress=progress)


_WORK: dict[UnitName, Callable[[Unit, Experiment, SearchSettings, Progress], None]] = {
    "trunk": _trunk,
    "baseline": _baseline,
    "search": _search,
    "grid": _grid,
    "ablation": _ablation,
    "student": _student,
}


_SECONDS_BETWEEN = 0.5


@dataclass(frozen=True)
class Status:
    """One worker's state.

    Attributes:
        unit: the piece of work.
        what: the step of it.
        done: how much of the step is done.
        total: how much there is.
        step_seconds: how long this step has been running.
        seconds: how long the piece of work has been running.
    """

    unit: str
    what: str
    done: int
    total: int
    step_seconds: float
    seconds: float

    @property
    def left_seconds(self) -> float | None:
        """What the step will still take at its speed so far; None where that cannot be told yet."""
        return self.step_seconds * (self.total - self.done) / self.done if self.done else None


class StatusBoard:
    """A folder with a file a working process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def reporting(self, unit: str) -> Iterator[Progress]:
        """Within it, the progress that it gives is put on the board, now and then."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}.json"
        began = step_began = time.monotonic()
        step, last = "", 0.0

        def report(what: str, done: int, total: int) -> None:
            nonlocal step, step_began, last
            now = time.monotonic()
            if what != step:
                step, step_began = what, now
            elif now - last < _SECONDS_BETWEEN:
                return
            last = now
            aside = path.with_suffix(".part")
            # Only for the eye: a full disk is told by what needs it.
            with suppress(OSError):
                aside.write_text(json.dumps(asdict(Status(unit, what, done, total, now - step_began, now - began))))
                os.replace(aside, path)

        try:
            yield report
        finally:
            path.unlink(missing_ok=True)

    def read(self) -> list[Status]:
        """What is being done, by piece of work. A file of a process that is no more is not shown."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                status = Status(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                continue
            if _is_alive(int(path.stem)):
                found.append(status)
        return sorted(found, key=lambda status: status.unit)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


Result = TypeVar("Result")
LOCAL = "local"


def run_jobs(
    work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], *, jobs: int = 1, backend: str = LOCAL
) -> Iterator[Result | OneTrunkError]:
    """Calls ``work`` with each of ``calls``; gives what came of them as they finish, in any order.

    A call that fails does not end the others: its error is given in place of a result.

    Args:
        work: a function of a module, since other processes import it.
        calls: arguments, the longest work first.
        jobs: how many at a time; on Ray at most as many as it has processors, and 1 stands for all of these.
        backend: ``local``, or ``ray`` for a Ray that runs on this machine, or ``ray://HOST:PORT``.

    Raises:
        UserError: the backend is unknown, its package is missing, or there is no such cluster.
        OneTrunkError: a process that worked was killed from outside.
    """
    if not calls:
        return
    with _backend(backend, jobs) as places:
        parallel = joblib.Parallel(n_jobs=places, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        try:
            yield from parallel(joblib.delayed(_caught)(work, call) for call in calls)
        except BrokenProcessPool as error:
            raise OneTrunkError(
                "a process at work was killed, perhaps for want of memory: give the same command again, perhaps with "
                "fewer --jobs; it goes on from what is finished"
            ) from error


def threads_for(jobs: int, backend: str = LOCAL) -> int:
    """How many threads each of some jobs may use, so that together they do not want more cores than there are."""
    # Ray gives each of its workers one processor.
    return max(1, (os.cpu_count() or 1) // jobs) if backend == LOCAL else 1


def check_backend(backend: str) -> None:
    """Raises UserError where the backend is not one of the known."""
    if backend not in (LOCAL, "ray") and not backend.startswith("ray://"):
        raise UserError(f"--backend {backend}: allowed are local, ray, ray://HOST:PORT")


def _caught(work: Callable[..., Result], call: Iterable[Any]) -> Result | OneTrunkError:
    try:
        return work(*call)
    except OneTrunkError as error:
        return error
    except OSError as error:
        return OneTrunkError(f"{type(error).__name__}: {error}")


@contextmanager
def _backend(backend: str, jobs: int) -> Iterator[int]:
    """Within it, joblib works on the backend. Gives how many jobs to run at a time there."""
    check_backend(backend)
    if backend == LOCAL:
        yield jobs
        return
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError:
        raise UserError(f"--backend {backend}: Ray is not installed; pip install -e '.[cluster]'") from None
    try:
        ray.init(address=None if backend == "ray" else backend, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--backend {backend}: no Ray there: {str(error).splitlines()[0]}") from error

    class Streaming(RayBackend):
        # It can, but does not say so: without, no result would come before the last one is there.
        supports_return_generator = True

    joblib.register_parallel_backend("ray", Streaming)
    try:
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with joblib.parallel_config(backend="ray"):
            yield processors if jobs == 1 else min(jobs, processors)
    finally:
        ray.shutdown()
