"""Rules that stop teachers, replayed on curves that can be followed by hand."""

from __future__ import annotations

import pytest

from benchmarks.study.stopping import below_median, far_behind, never, replay

# The third teacher is behind after its first epoch, and ends best.
LATE = {"one": (100, [[0.6, 0.7], [0.62, 0.8], [0.5, 0.9]])}
LOSER = {"one": (100, [[0.6, 0.7], [0.3, 0.4]])}


@pytest.mark.parametrize(
    ("teachers", "rule", "epochs", "lost"),
    [
        (LATE, never, 6, {}),
        (LATE, below_median, 5, {"one": pytest.approx(0.1)}),
        (LATE, far_behind(2, 1), 5, {"one": pytest.approx(0.1)}),
        (LATE, far_behind(4, 1), 6, {}),
        (LATE, far_behind(0, 2), 6, {}),
        (LOSER, below_median, 3, {}),
        (LOSER, far_behind(2, 1), 3, {}),
    ],
)
def test_what_a_rule_saves_and_loses(teachers, rule, epochs, lost):
    found = replay(teachers, rule)
    assert (found.epochs, found.lost) == (epochs, lost)
