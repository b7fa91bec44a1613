"""The linear model's column, and what is kept where full fine-tuning beats it."""

from __future__ import annotations

import pytest

from benchmarks.study.linear import linear_score, linear_summary, linear_table, measure_linear, read_linear
from benchmarks.study.report import write_quality_report
from onetrunk.distill.results import SearchRecords, SearchResults


def test_tasks_on_which_tuning_does_not_help_are_left_out_of_the_average(whole_study):
    measure_linear(whole_study.folder, {"blue": 0.5})
    measure_linear(whole_study.folder, {"red": 0.61})
    scores = read_linear(whole_study.folder)
    assert scores == {"blue": 0.5, "red": 0.61}
    results = SearchResults.of(SearchRecords.read(whole_study.folder))
    found = linear_summary(results, scores)
    # Full fine-tuning has 82 on blue and 60 on red.
    assert found["tuning_does_not_help"] == ["red"]
    assert found["retention_average_where_tuning_helps"] == pytest.approx(0.81 / 0.82, abs=1e-6)
    write_quality_report(whole_study.folder)
    page = (whole_study.folder / "README.md").read_text()
    assert "| blue | accuracy | 50.0 | 82.0 | 81.0 | +31.0 |" in page
    assert "Kept on average where full fine-tuning beats the linear model: 98.8% (without: red)." in page


def test_without_scores_it_is_said(whole_study):
    results = SearchResults.of(SearchRecords.read(whole_study.folder))
    assert linear_table(results, {}) == ["A linear model on the embedding: not measured yet."]
    assert linear_summary(results, {})["retention_average_where_tuning_helps"] is None


def test_a_word_that_decides_is_in_the_embedding(new_experiment, mood, second):
    assert linear_score("mood", new_experiment(mood, second)) > 0.7


def test_numbers_of_pairs_are_predicted_too(new_experiment, likeness):
    # Train and dev are the same rows.
    assert linear_score("likeness", new_experiment(likeness)) > 0.8
