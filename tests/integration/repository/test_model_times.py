"""What measuring the models takes: every number of threads in turn, and the memory of each model once."""

import weakref

import pytest

from onetrunk.repository import model_times
from onetrunk.repository.model_times import measure_models


@pytest.fixture
def files(tiny_repository):
    return {name: tiny_repository / name / "1/model.onnx" for name in ("trunk_00_01", "trunk_01_03", "head_mood")}


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(model_times, "idle_fraction", lambda cores: 1.0)


@pytest.fixture
def loaded(monkeypatch):
    """Each session that is made: its threads, and how many there are then."""
    real, alive, made = model_times._session, weakref.WeakSet(), []

    def session(file, threads):
        alive.add(one := real(file, threads))
        made.append((threads, len(alive)))
        return one

    monkeypatch.setattr(model_times, "_session", session)
    return made


def test_no_model_is_loaded_twice_at_a_time(files, quiet, loaded):
    measure_models(files, 8, 100, cores=4)
    assert max(count for _, count in loaded) == len(files)


def test_every_number_of_threads_has_its_turns(files, quiet, loaded):
    found = measure_models(files, 8, 100, cores=2)
    assert {name: set(times) for name, times in found.times.items()} == {name: {1, 2} for name in files}
    assert found.idle_fraction == 1.0
    turns = [threads for threads, _ in loaded][:: len(files)]
    assert [set(turns[start : start + 2]) for start in range(0, len(turns), 2)] == [{1, 2}] * 3


def test_a_machine_that_is_never_quiet_is_measured_for_a_while(files, monkeypatch, loaded):
    monkeypatch.setattr(model_times, "idle_fraction", lambda cores: 0.5)
    monkeypatch.setattr(model_times, "_TIME_LIMIT_S", 0.0)
    assert measure_models(files, 8, 100, cores=1).idle_fraction == 0.5
    assert len(loaded) == 3 * len(files)
