"""The simulation of a server: queues, batches, and cores that runs share."""

import pytest

pytest.importorskip("simpy", reason="the extra simulation is not installed")

from benchmarks.scale import Part, as_alone, longest_path, poisson, simulate

CHAIN = {
    "trunk": Part(("text",), ("hidden",), (0.0, 10.0)),
    "a": Part(("hidden",), ("a",), (0.0, 4.0)),
    "b": Part(("hidden",), ("b",), (0.0, 4.0)),
}


def test_a_text_alone_takes_the_longest_path():
    assert simulate(CHAIN, [0.0], [1.0]).p50_ms == pytest.approx(15.0)
    assert longest_path(CHAIN, {name: sum(part.ms) for name, part in CHAIN.items()}) == pytest.approx(14.0)


@pytest.mark.parametrize(("cores", "ms"), [(None, 15.0), (3, 15.0), (2, 15.0), (1, 19.0)])
def test_runs_at_the_same_time_share_the_cores(cores, ms):
    assert simulate(CHAIN, [0.0], [1.0], cores=cores).p50_ms == pytest.approx(ms)


def test_whoever_comes_later_slows_down_who_is_there():
    part = {"one": Part((), ("x",), (0.0, 10.0), instances=2, most=1)}
    first, second = 0.0, 0.005
    found = simulate(part, [first, second], [0.0], cores=1)
    # 5 ms alone, 10 ms at half the speed, and the later one's last 5 ms alone: 15 ms each.
    assert (found.p50_ms, found.p99_ms) == (pytest.approx(15.0), pytest.approx(15.0))


def test_texts_that_wait_are_one_batch():
    part = {"one": Part((), ("x",), (8.0, 1.0))}
    found = simulate(part, [0.0, 0.001, 0.002], [0.0])
    assert found.p99_ms == pytest.approx(9.0 + 10.0 - 1.0, abs=0.1)


def test_of_one_core_no_more_is_done_than_it_has():
    """Two instances of a part on one core: the mean time is that of processor sharing, work / (1 - load)."""
    part = {"one": Part((), ("x",), (0.0, 1.0), instances=20, most=1)}
    arrivals = poisson(500.0, 2.0, 1)
    found = simulate(part, arrivals, [0.0], cores=1)
    assert 1.0 < found.p50_ms < 2.0
    assert found.p99_ms > 3.0
    assert found.texts == len(arrivals)


def test_a_part_under_load_is_as_long_as_alone_and_grows_as_under_load():
    alone, loaded = Part((), (), (0.0, 4.0), spread=(1.0, 2.0)), Part((), (), (6.0, 2.0), spread=(3.0,))
    found = as_alone(alone, loaded, 0.5)
    assert found.ms == pytest.approx((3.0, 1.0))
    assert (found.spread, found.dispatch_ms) == ((1.0, 2.0), 0.5)
    assert as_alone(alone, None, 0.5).ms == (0.0, 4.0)
