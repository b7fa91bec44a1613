"""Progress says what it counts."""

import numpy as np
import pytest

from onetrunk.cli import console
from onetrunk.cli.console import progress_line
from onetrunk.progress import split_unit
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import choose_compute


@pytest.mark.parametrize(
    ("what", "done", "total", "line"),
    [
        (
            "rte: trunk on train texts, in tokens",
            13632,
            419247,
            "rte: trunk on train texts: 13,632 of 419,247 tokens",
        ),
        ("fetching base, in MB", 12, 400, "fetching base: 12 of 400 MB"),
        ("limb: epoch 1 of 4, mnli", 3, 9, "limb: epoch 1 of 4, mnli: 3 of 9"),
    ],
)
def test_a_line_in_a_log(capsys, monkeypatch, what, done, total, line):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    with progress_line() as show:
        show(what, done, total)
    assert capsys.readouterr().err.splitlines() == [line]


def test_the_pass_of_the_trunk_counts_tokens(tiny_trunk, tmp_path):
    seen = []
    cache = StateCache(tmp_path, tiny_trunk, choose_compute(tiny_trunk, "cpu", "fp32"))
    found = cache.states(
        ["a film", "a very good film"],
        [1],
        max_length=16,
        what="trunk on texts",
        progress=lambda *one: seen.append(one),
    )
    what, done, total = seen[-1]
    assert split_unit(what) == ("trunk on texts", "tokens")
    assert done == total == np.sum(found.states[1].lengths)
