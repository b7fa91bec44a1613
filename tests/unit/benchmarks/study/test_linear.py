"""The linear model's column, and what is kept where full fine-tuning beats it."""

from __future__ import annotations

import pytest

from benchmarks.study import linear
from benchmarks.study.linear import (
    LinearComparison,
    compare_linear,
    linear_summary,
    linear_table,
    measure_linear,
    read_linear,
)
from benchmarks.study.report import write_quality_report
from onetrunk.distill.results import SearchRecords, SearchResults
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.training import train
from onetrunk.training.evaluation import raw_outputs


def test_tasks_on_which_tuning_does_not_help_are_left_out_of_the_average(whole_study):
    measure_linear(whole_study.folder, {"blue": LinearComparison(0.5, head=0.8, low=0.2, high=0.4)})
    measure_linear(whole_study.folder, {"red": LinearComparison(0.61)})
    scores = read_linear(whole_study.folder)
    assert {task: one.linear for task, one in scores.items()} == {"blue": 0.5, "red": 0.61}
    results = SearchResults.of(SearchRecords.read(whole_study.folder))
    found = linear_summary(results, scores)
    # Full fine-tuning has 82 on blue and 60 on red.
    assert found["tuning_does_not_help"] == ["red"]
    assert found["retention_average_where_tuning_helps"] == pytest.approx(0.81 / 0.82, abs=1e-6)
    write_quality_report(whole_study.folder)
    page = (whole_study.folder / "README.md").read_text()
    assert "| blue | accuracy | 50.0 | 82.0 | 81.0 | +31.0 | +30.0 (+20.0 to +40.0) |" in page
    assert "| red | accuracy | 61.0 |" in page
    assert found["head_beyond_linear"] == {"blue": [0.3, 0.2, 0.4]}
    assert "Kept on average where full fine-tuning beats the linear model: 98.8% (without: red)." in page


def test_without_scores_it_is_said(whole_study):
    results = SearchResults.of(SearchRecords.read(whole_study.folder))
    assert linear_table(results, {}) == ["A linear model on the embedding: not measured yet."]
    assert linear_summary(results, {})["retention_average_where_tuning_helps"] is None


def test_a_word_that_decides_is_in_the_embedding(new_experiment, mood, second):
    assert compare_linear("mood", new_experiment(mood, second)).linear > 0.7


def test_a_finished_head_is_compared_row_by_row(new_experiment, mood, tiny_trunk, tmp_path):
    """The interval holds the gain, and is as wide as chance makes it with 60 rows."""
    result = train(mood, tiny_trunk, heads=tmp_path / "heads", cache=tmp_path / "cache", device="cpu")
    found = compare_linear("mood", new_experiment(mood), tmp_path / "heads")
    assert found.head == pytest.approx(result.score, abs=1e-6)
    assert found.low <= found.head - found.linear <= found.high
    assert 0 < found.high - found.low < 0.4


def test_of_two_that_say_the_same_nothing_is_left_to_chance(new_experiment, mood, tiny_trunk, tmp_path, monkeypatch):
    """Both are scored on the same drawn rows: an interval of two separate draws would be as wide as ever."""
    result = train(mood, tiny_trunk, heads=tmp_path / "heads", cache=tmp_path / "cache", device="cpu")
    experiment, head = new_experiment(mood), load_bundle(result.bundle).head(tiny_trunk)
    raw = raw_outputs(head, experiment.states("mood", "dev", [1]).states[1])
    monkeypatch.setattr(linear, "_linear_scores", lambda *arguments: raw.softmax(dim=-1).numpy())
    found = compare_linear("mood", experiment, tmp_path / "heads")
    assert (found.low, found.high, found.head) == (0, 0, found.linear)
    longer = mood.model_copy(update={"recipe": mood.recipe.model_copy(update={"max_length": 16})})
    train(longer, tiny_trunk, heads=tmp_path / "short", cache=tmp_path / "cache", device="cpu")
    with pytest.raises(UserError, match="it reads texts of up to 16 tokens, not 32"):
        compare_linear("mood", experiment, tmp_path / "short")


def test_a_file_of_an_earlier_version_says_so(tmp_path):
    (tmp_path / linear.FILE).write_text('{"scores": {"blue": 0.5}}')
    with pytest.raises(UserError, match="written by an earlier version: remove it"):
        read_linear(tmp_path)


def test_numbers_of_pairs_are_predicted_too(new_experiment, likeness):
    # Train and dev are the same rows.
    assert compare_linear("likeness", new_experiment(likeness)).linear > 0.8
