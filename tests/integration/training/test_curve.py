"""The learning curve of a head: parts of its texts, what is trained once only, and what follows from it."""

import re

import pytest

from onetrunk.training import train
from onetrunk.training.curve import CurvePoint, curve_note, noise_of


@pytest.fixture
def run(tiny_trunk, tmp_path):
    def call(task, **changes):
        places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
        return train(task, tiny_trunk, curve=True, **{**places, **changes})

    return call


def test_parts_are_trained_once_and_a_killed_curve_goes_on(run, mood, fits):
    task = mood.model_copy(update={"recipe": mood.recipe.model_copy(update={"tap": 0, "epochs": 1})})

    def kill(what, done, total):
        if "epoch 2 of 4, 1/4 of the texts" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, progress=kill)
    assert len(fits) == 3
    result = run(task)
    assert result.already_there
    # The eighth is recorded, and the quarter goes on after its first epoch.
    assert [one.start for one in fits[3:]] == [1, 0]
    assert [len(one.state.losses) for one in fits[3:]] == [4, 2]
    points = result.curve.points
    assert [point.share for point in points] == [1 / 8, 1 / 4, 1 / 2, 1]
    assert [point.epochs for point in points] == [4, 4, 2, 1]
    assert points[0].texts < points[1].texts < points[2].texts < points[3].texts == 200
    assert points[3].score == result.score
    assert result.curve.note in result.notes
    again = run(task)
    assert len(fits) == 5
    assert again.curve == result.curve


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ((0.6, 0.7, 0.8, 0.9), "from 400 to 800 texts, accuracy changed by \\+10.0 points; .*: more labels would help"),
        ((0.6, 0.9, 0.9, 0.9), "changed by \\+0.0 points; .*: 200 texts do as well as all 800"),
        ((0.9, 0.9, 0.9, 0.9), "100 texts do as well as all 800.*would hardly help"),
        ((0.9, 0.9, 0.95, 0.9), "changed by -5.0 points; .* 100 texts do as well as all 800"),
        ((0.6, 0.7, 0.885, 0.9), "changed by \\+1.5 points; .* more labels may help, and more dev rows would tell"),
    ],
)
def test_what_follows_from_a_curve(scores, words):
    points = [CurvePoint(n / 800, n, score, 1, 1.0) for n, score in zip((100, 200, 400, 800), scores, strict=True)]
    noise = noise_of(scores[-1], 225)
    assert noise == pytest.approx(0.02)
    assert re.search(words, curve_note(points, "accuracy", noise, 225))


def test_noise_of_a_perfect_score_is_not_none():
    assert [noise_of(1.0, 100), noise_of(0.0, 100)] == pytest.approx([0.0218, 0.0218], abs=1e-4)


def test_nothing_follows_from_a_head_that_has_learned_nothing():
    points = [CurvePoint(0.5, 100, 0.4, 2, 1.0), CurvePoint(1.0, 200, 0.4, 1, 1.0)]
    assert "is no better than the commonest answer alone, 67.5" in curve_note(points, "accuracy", 0.03, 225, 0.675)
