"""From the scores of probes to the taps that get teachers."""

import pytest

from onetrunk.distill.task_search import promising_taps


@pytest.mark.parametrize(
    ("scores", "count", "taps"),
    [
        # The best, and those below it: a teacher makes up for what a lower tap lacks.
        ([0.5, 0.6, 0.9, 0.8], 1, [2]),
        ([0.5, 0.6, 0.9, 0.8], 2, [2, 1]),
        ([0.5, 0.6, 0.9, 0.8], 3, [2, 1, 0]),
        # Too few below: the nearest above are next.
        ([0.5, 0.6, 0.9, 0.8], 4, [3, 2, 1, 0]),
        ([0.9, 0.6, 0.5, 0.8], 2, [1, 0]),
        ([0.9, 0.6, 0.5, 0.8], 3, [2, 1, 0]),
        # Of equals the deepest, which costs least.
        ([0.7, 0.7, 0.7, 0.7], 2, [3, 2]),
        ([0.7, 0.7, 0.1, 0.0], 1, [1]),
        # Correlations may be negative.
        ([-0.2, -0.1, -0.3, -0.4], 2, [1, 0]),
        # More than there are.
        ([0.1, 0.2], 9, [1, 0]),
        ([0.1], 1, [0]),
    ],
)
def test_best_probe_and_those_below_it_the_deepest_first(scores, count, taps):
    assert promising_taps(dict(enumerate(scores)), count) == taps
