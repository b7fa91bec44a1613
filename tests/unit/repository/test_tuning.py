"""How many threads follow from what was measured, and what a reader is told of it."""

import pytest

from onetrunk.repository.model_times import ModelTime, thread_counts
from onetrunk.repository.tuning import choose_threads


def part(*times):
    """What a model costs with 1, 2 ... threads, as (wall, CPU)."""
    return {count: ModelTime(*time) for count, time in enumerate(times, 1)}


def counts(times, cores, objective="throughput"):
    return {name: threads.count for name, threads in choose_threads(times, cores, objective, 64).items()}


EVEN = {"a": part((10, 10), (6, 12)), "b": part((10, 10), (6, 12))}
# Half of all the work is 12 ms with one thread each.
UNEVEN = {"a": part((20, 20), (12, 23)), "b": part((4, 4), (3, 5))}


def test_one_thread_where_no_part_is_slower_than_all_cores_together():
    assert counts(EVEN, 2) == {"a": 1, "b": 1}


def test_reason_names_the_rate_of_all_cores():
    reason = choose_threads(EVEN, 2, "throughput", 64)["a"].reason
    assert reason == (
        "1 thread: 10.0 ms a text of 64 tokens; it keeps up with the whole: "
        "all 2 cores together give 100.0 texts/s (10.0 ms a text)."
    )


def test_only_the_part_that_holds_the_others_up_gets_more():
    assert counts(UNEVEN, 2) == {"a": 2, "b": 1}
    reason = choose_threads(UNEVEN, 2, "throughput", 64)["a"].reason
    assert reason == (
        "2 threads: 12.0 ms a text of 64 tokens; with 1 thread it takes 20.0 ms and holds the others up: "
        "all 2 cores together give 74.1 texts/s (13.5 ms a text)."
    )


def test_no_more_threads_than_needed():
    times = {"a": part((20, 20), (12, 23), (9, 26), (8, 30)), **{name: part(*[(9, 9)] * 4) for name in "bcd"}}
    assert counts(times, 4) == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_threads_that_make_a_part_no_faster_are_passed_over():
    assert counts({"a": part((20, 20), (21, 40), (12, 33))}, 3) == {"a": 3}
    stuck = choose_threads({"a": part((20, 20), (21, 40))}, 2, "throughput", 64)["a"]
    assert (stuck.count, "more threads would not win three tenths for the whole" in stuck.reason) == (1, True)


def test_a_split_that_costs_what_it_wins_is_not_made():
    # The second thread would let the others go on, and take from them what they win.
    times = {"trunk": part((4.3, 4.3), (2.6, 5.2)), "heads": part((2.8, 2.8), (2, 3.6))}
    assert counts(times, 2) == {"trunk": 1, "heads": 1}


def test_latency_takes_the_fastest_if_that_is_worth_a_thread():
    times = {"a": part((20, 20), (12, 23)), "b": part((4, 4), (3.7, 5)), "c": part((4, 4), (5, 8))}
    assert counts(times, 2, "latency") == {"a": 2, "b": 1, "c": 1}
    chosen = choose_threads(times, 2, "latency", 64)
    assert chosen["a"].reason == "2 threads: 12.0 ms a text of 64 tokens, with 1 thread 20.0 ms."
    assert chosen["b"].reason == "1 thread: 4.00 ms a text of 64 tokens; 2 threads (3.70 ms) would not save 10%."


def test_latency_adds_up_small_gains():
    assert counts({"a": part((10, 10), (9.5, 19), (8.9, 26), (8.8, 35))}, 4, "latency") == {"a": 3}


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_one_core_leaves_no_choice(objective):
    assert counts({"a": part((10, 10)), "b": part((1, 1))}, 1, objective) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("cores", "tried"),
    [
        (1, [1]),
        (2, [1, 2]),
        (5, [1, 2, 3, 4, 5]),
        (16, [1, 2, 3, 4, 6, 8, 12, 16]),
        (20, [1, 2, 3, 4, 6, 8, 12, 16, 20]),
    ],
)
def test_never_more_threads_than_cores(cores, tried):
    assert thread_counts(cores) == tried
