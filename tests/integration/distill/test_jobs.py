"""Work side by side: every call is answered, whatever happens to the others."""

import os
import sys

import pytest

from onetrunk.distill.jobs import Job, check_backend, run_job, run_parallel, threads_for
from onetrunk.distill.pipeline import cache_states
from onetrunk.distill.settings import SearchSettings
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.training.experiment import ExperimentConfig

BACKENDS = [("local",), ("cloud",), ("ray",), ("ray://head:10001",), ("ray:head",)]


def check_answers(answers):
    """Of ``check_backend`` for BACKENDS: two are refused."""
    errors = [answer for answer in answers if answer is not None]
    assert len(answers) == 5
    assert sorted(str(error).partition(":")[0] for error in errors) == ["--backend cloud", "--backend ray"]
    assert all(isinstance(error, UserError) for error in errors)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_call_is_answered(jobs):
    calls = [(number, 7) for number in range(20)]
    assert sorted(run_parallel(divmod, calls, jobs=jobs)) == sorted(divmod(*call) for call in calls)


@pytest.mark.parametrize("jobs", [1, 2])
def test_error_of_one_does_not_end_the_others(jobs):
    check_answers(list(run_parallel(check_backend, BACKENDS, jobs=jobs)))


def test_error_of_the_disk_does_not_end_the_others(tmp_path):
    found, missing = run_parallel(os.listdir, [(str(tmp_path),), (str(tmp_path / "none"),)])
    assert found == []
    assert isinstance(missing, OneTrunkError)
    assert str(missing).startswith("FileNotFoundError: ")


def test_killed_process_is_an_error():
    with pytest.raises(OneTrunkError, match=r"killed.*--jobs"):
        list(run_parallel(os._exit, [(9,), (9,)], jobs=2))


def test_nothing_to_do_needs_no_backend():
    assert list(run_parallel(divmod, [], backend="cloud")) == []


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match="--backend cloud: allowed are local, ray, ray://HOST:PORT"):
        list(run_parallel(divmod, [(1, 1)], backend="cloud"))


def test_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--backend ray: Ray is not installed; pip install 'onetrunk\[cluster\]'"):
        list(run_parallel(divmod, [(1, 1)], backend="ray"))


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr("onetrunk.distill.jobs.usable_cores", lambda: 8)
    assert [threads_for(jobs) for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert threads_for(1, "ray") == 1


@pytest.mark.slow
def test_local_ray(monkeypatch, mood, second, tiny_trunk_folder, tmp_path):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A piece of a search, for two tasks and for one that there is not: what comes of it is on disk.
    settings = ExperimentConfig(
        tasks=(mood, second), trunk=str(tiny_trunk_folder), cache=tmp_path / "cache", max_length=32, threads=1
    )
    calls = [(Job(task, "trunk", cache_states), settings, SearchSettings()) for task in ("mood", "none", "second")]
    answers = list(run_parallel(run_job, calls, jobs=2, backend="ray"))
    assert not ray.is_initialized()
    assert sorted(str(answer) for answer in answers if isinstance(answer, Job)) == ["mood: trunk", "second: trunk"]
    assert [type(answer) for answer in answers if not isinstance(answer, Job)] == [UserError]
    states = {path.name for path in (tmp_path / "cache" / "states").rglob("*.f16")}
    assert states == {f"tap_0{tap}.f16" for tap in range(4)}
