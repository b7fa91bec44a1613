"""Jobs that run side by side, in processes of this machine or on a Ray cluster, and what each is doing just now."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from onetrunk.distill.settings import SearchSettings
from onetrunk.files import translate_os_errors
from onetrunk.machine import usable_cores
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment

Result = TypeVar("Result")
Work = Callable[[str, Experiment, SearchSettings, ProgressCallback], Any]
"""What a job does for its task. Its result is on disk; another process imports it, so it is a module's function."""

LOCAL = "local"
_SECONDS_BETWEEN_WRITES = 0.5


@dataclass(frozen=True)
class Job:
    """One piece of work for one task.

    Attributes:
        task: The task.
        name: What it does, such as ``search``.
        work: The function that does it, or a ``functools.partial`` of one.
    """

    task: str
    name: str
    work: Work

    def __str__(self) -> str:
        return f"{self.task}: {self.name}"


@dataclass(frozen=True)
class JobRunner:
    """A runner of jobs of one experiment, side by side.

    Attributes:
        config: The experiment, which every worker process opens for itself.
        settings: The budgets of the search.
        jobs: The number of jobs at a time.
        backend: ``local``, ``ray`` or ``ray://HOST:PORT``; see ``run_parallel``.
        on_done: Called with each job that is done, and with the error of each that failed.
    """

    config: ExperimentConfig
    settings: SearchSettings
    jobs: int = 1
    backend: str = LOCAL
    on_done: Callable[[Job | OneTrunkError], None] = lambda result: None

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs. One that fails does not end the others.

        Raises:
            OneTrunkError: The first job that failed, after all others have ended.
        """
        calls = [(job, self.config, self.settings) for job in jobs]
        errors = []
        for result in run_parallel(run_job, calls, jobs=self.jobs, backend=self.backend):
            self.on_done(result)
            if isinstance(result, OneTrunkError):
                errors.append(result)
        if errors:
            raise errors[0]


def run_job(job: Job, config: ExperimentConfig, settings: SearchSettings) -> Job:
    """Run a job in this process, and return it when it is done.

    Raises:
        OneTrunkError: The job failed.
    """
    experiment = open_experiment(config)
    with StatusBoard(experiment.cache_root / "status").reporting(str(job)) as progress:
        job.work(job.task, experiment, settings, _ends_with_parent(progress))
    return job


def _ends_with_parent(progress: ProgressCallback) -> ProgressCallback:
    """Make a progress callback that raises once the process that started this one is gone.

    A command that is killed cannot end its workers, which would go on beside those of the next command.
    """
    if multiprocessing.current_process().name == "MainProcess":
        # The command itself, which may outlive its shell; or Ray's worker, which Ray ends.
        return progress
    parent = os.getppid()

    def report(what: str, done: int, total: int) -> None:
        if os.getppid() != parent:
            raise OneTrunkError("the command that started this process was killed")
        progress(what, done, total)

    return report


def run_parallel(
    work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], *, jobs: int = 1, backend: str = LOCAL
) -> Iterator[Result | OneTrunkError]:
    """Call ``work`` with each of ``calls``, and yield the results as they come, in any order.

    A call that fails does not end the others: its error is yielded in place of a result.

    Args:
        work: A module's function, since other processes import it.
        calls: The arguments of each call, the longest work first.
        jobs: The number of calls at a time; on Ray at most its number of processors, and 1 stands for all of them.
        backend: ``local``, or ``ray`` for a Ray that runs on this machine, or ``ray://HOST:PORT``.

    Raises:
        UserError: The backend is unknown, its package is missing, or there is no such cluster.
        OneTrunkError: A worker process was killed from outside.
    """
    if not calls:
        return
    with _backend(backend, jobs) as workers:
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        try:
            yield from parallel(joblib.delayed(_catch_errors)(work, call) for call in calls)
        except BrokenProcessPool as error:
            raise OneTrunkError(
                "a worker process was killed, perhaps because memory ran out: run the same command again, perhaps "
                "with fewer --jobs; it goes on from what is finished"
            ) from error


def threads_for(jobs: int, backend: str = LOCAL) -> int:
    """Return the number of threads for each of some jobs, so that together they do not use more cores than there are.

    Args:
        jobs: The number of jobs at a time.
        backend: The backend; Ray gives each of its workers one processor.
    """
    return max(1, usable_cores() // jobs) if backend == LOCAL else 1


def check_backend(backend: str) -> None:
    """Check that a backend is known.

    Raises:
        UserError: It is not.
    """
    if backend not in (LOCAL, "ray") and not backend.startswith("ray://"):
        raise UserError(f"--backend {backend}: allowed are local, ray, ray://HOST:PORT")


def _catch_errors(work: Callable[..., Result], call: Iterable[Any]) -> Result | OneTrunkError:
    try:
        return work(*call)
    except OneTrunkError as error:
        return error
    except OSError as error:
        return OneTrunkError(f"{type(error).__name__}: {error}")


@contextmanager
def _backend(backend: str, jobs: int) -> Iterator[int]:
    """Make joblib use the backend, and yield the number of jobs to run at a time."""
    check_backend(backend)
    if backend == LOCAL:
        yield jobs
        return
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError:
        raise UserError(f"--backend {backend}: Ray is not installed; pip install 'onetrunk[cluster]'") from None
    try:
        ray.init(address=None if backend == "ray" else backend, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--backend {backend}: no Ray found: {str(error).splitlines()[0]}") from error

    class Streaming(RayBackend):
        # Ray's backend can stream results but does not declare it; without this, all results would come at the end.
        supports_return_generator = True

    joblib.register_parallel_backend("ray", Streaming)
    try:
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with joblib.parallel_config(backend="ray"):
            yield processors if jobs == 1 else min(jobs, processors)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Status:
    """What one worker is doing.

    Attributes:
        job: The job, as text.
        step: The step of the job.
        done: How much of the step is done.
        total: How much there is in all.
        step_seconds: How long the step has been running.
        seconds: How long the job has been running.
    """

    job: str
    step: str
    done: int
    total: int
    step_seconds: float
    seconds: float

    @property
    def left_seconds(self) -> float | None:
        """The time that the step will still take at its speed so far; None before anything is done."""
        return self.step_seconds * (self.total - self.done) / self.done if self.done else None


class StatusBoard:
    """A folder with one small file per worker process, for whoever displays a table of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def reporting(self, job: str) -> Iterator[ProgressCallback]:
        """Yield a progress callback whose reports appear on the board, at intervals."""
        with translate_os_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}.json"
        began = step_began = time.monotonic()
        step, last = "", 0.0

        def report(what: str, done: int, total: int) -> None:
            nonlocal step, step_began, last
            now = time.monotonic()
            if what != step:
                step, step_began = what, now
            elif now - last < _SECONDS_BETWEEN_WRITES:
                return
            last = now
            aside = path.with_suffix(".part")
            # For display only: a full disk is reported by whatever needs the room.
            with suppress(OSError):
                aside.write_text(
                    json.dumps(asdict(Status(job, what, done, total, now - step_began, now - began))), encoding="utf-8"
                )
                os.replace(aside, path)

        try:
            yield report
        finally:
            path.unlink(missing_ok=True)

    def read(self) -> list[Status]:
        """Return what is being done, by job. Files of processes that have ended are left out."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                status = Status(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            if _is_alive(int(path.stem)):
                found.append(status)
        return sorted(found, key=lambda status: status.job)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
