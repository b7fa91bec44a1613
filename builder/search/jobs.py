"""Running the same work for many tasks side by side: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import joblib

from builder.errors import OneTrunkError, UserError

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
        jobs: how many at a time; on Ray, as many as the cluster has room for.
        backend: ``local``, or ``ray`` for a Ray that runs on this machine, or ``ray://HOST:PORT``.

    Raises:
        UserError: the backend is unknown, its package is missing, or there is no such cluster.
    """
    if not calls:
        return
    with _backend(backend):
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        yield from parallel(joblib.delayed(_caught)(work, call) for call in calls)


def threads_for(jobs: int) -> int:
    """How many threads each of some jobs may use, so that together they do not want more cores than there are."""
    return max(1, (os.cpu_count() or 1) // jobs)


def check_backend(backend: str) -> None:
    """Raises UserError where the backend is not one of the known."""
    if backend not in (LOCAL, "ray") and not backend.startswith("ray://"):
        raise UserError(f"--backend {backend}: allowed are local, ray, ray://HOST:PORT")


def _caught(work: Callable[..., Result], call: Iterable[Any]) -> Result | OneTrunkError:
    try:
        return work(*call)
    except OneTrunkError as error:
        return error


@contextmanager
def _backend(backend: str) -> Iterator[None]:
    check_backend(backend)
    if backend == LOCAL:
        yield
        return
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise UserError(f"--backend {backend}: Ray is not installed; pip install -e '.[cluster]'") from None
    try:
        ray.init(address=None if backend == "ray" else backend, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--backend {backend}: no Ray there: {str(error).splitlines()[0]}") from error
    register_ray()
    try:
        with joblib.parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()
