"""Running the same work for many tasks side by side: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from onetrunk.protocol.errors import OneTrunkError, UserError

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
