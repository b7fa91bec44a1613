"""Models whose process has died, was stopped, or holds more memory than its share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest

from onetrunk.serving.shared_memory import MIB
from tests.unit.serving.watchdog.conftest import MOOD, Clock, FakeServer, look, process


def test_a_dead_process_is_revived_at_the_second_look(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    dog._look()
    del server.living[100]
    dog._look()
    assert server.reloads == []
    dog._look()
    assert server.reloads == ["head_mood"]
    dog._look()
    assert server.reloads == ["head_mood"]


def test_a_process_that_is_only_replaced_is_left_alone(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    both = dict(server.living)
    for living in (both, {200: both[200]}, both, {200: both[200]}, both):
        server.living = dict(living)
        dog._look()
    assert server.reloads == []


def test_a_model_unloaded_on_purpose_is_not_revived(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    del server.living[100]
    server.unloaded = {"head_mood"}
    for _ in range(4):
        dog._look()
    server.unloaded = set()
    dog._look()
    assert server.reloads == []


def test_a_model_that_will_not_load_is_tried_ever_more_rarely(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make()
    server.reload_fails = True
    del server.living[100]
    tries_at = []

    def note() -> None:
        if len(server.reloads) > len(tries_at):
            tries_at.append(clock.now_s)

    look(dog, clock, 40, note)
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(tries_at)]
    assert waits == [1, 2, 4, 8, 16]
    assert "head_mood died and does not load again (try 1): the file is broken" in caplog.text


def test_all_other_models_are_watched_while_one_loads(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make()
    jobs: list[Callable[[], None]] = []
    dog._run_apart = jobs.append
    del server.living[100]
    look(dog, clock, 5)
    assert len(jobs) == 1, "loading once is enough"
    del server.living[200]
    look(dog, clock, 1)
    assert len(jobs) == 2
    for job in jobs:
        job()
    look(dog, clock, 5)
    assert server.reloads == ["head_mood", "head_topic"]


@pytest.mark.parametrize("probe_interval_s", [5.0, None])
def test_a_stopped_process_is_replaced_and_its_neighbour_left_alone(
    server: FakeServer,
    make: Callable[..., Any],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    probe_interval_s: float | None,
) -> None:
    dog = make(probe_interval_s=probe_interval_s)
    look(dog, clock, 2)
    server.living[100] = process(MOOD, 100, psutil.STATUS_STOPPED)
    look(dog, clock, 4)
    assert server.killed == [100]
    assert server.reloads == ["head_mood"]
    assert "head_mood hangs: its process is stopped by a signal" in caplog.text
    assert "head_mood hung and was reloaded" in caplog.text


def test_memory_beyond_a_models_share_is_given_back_once_nobody_asks(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make(probe_interval_s=5.0)
    server.regions = {"region_head_mood": 512 * MIB, "region_head_topic": 9 * MIB}

    def ask() -> None:
        server.successes["head_mood"] += 1

    look(dog, clock, 30, ask)
    assert server.reloads == []

    def give_back() -> None:
        if server.reloads:
            server.regions["region_head_mood"] = MIB

    look(dog, clock, 30, give_back)
    assert server.reloads == ["head_mood"], "and the watchdog's own probes are nobody's"
    assert server.killed == []
    assert "head_mood held 512 MiB of shared memory (its share is 9 MiB) and was reloaded" in caplog.text


def test_memory_of_a_process_whose_successor_runs_is_no_reason_to_reload_again(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0)
    look(dog, clock, 30)  # nobody asks it
    server.living[300] = replace(process(MOOD, 300), region="region_of_the_successor")
    server.regions = {"region_head_mood": 512 * MIB}
    look(dog, clock, 3)
    assert server.reloads == []
    del server.living[100]
    look(dog, clock, 30)
    assert server.reloads == []
