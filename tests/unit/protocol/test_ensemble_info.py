"""The parameter ``onetrunk``: what is written can be read, byte for byte, whatever a kind adds."""

from __future__ import annotations

import json

import pytest

from onetrunk.protocol.ensemble_info import EnsembleInfo, TaskInfo, read_ensemble_info

TEXT = (
    '{"schema": 1, "trunk": "bert-6x384@0123456789ab", "max_length": 128, "buckets": [16, 128], "tasks": {'
    '"sst2": {"kind": "classification", "form": "single", "labels": ["negative", "positive"], "range": null, '
    '"metric": "accuracy", "tap": 4, "layers": 1, "version": 1, "none_below": 0.5}, '
    '"stsb": {"kind": "regression", "form": "pair", "labels": null, "range": [0.0, 5.0], '
    '"metric": "pearson", "tap": 3, "layers": 2, "version": 7}}}'
)


def test_what_was_read_is_written_byte_for_byte():
    info = read_ensemble_info(TEXT)
    assert info.text() == TEXT
    assert info.tasks["sst2"].name == "sst2"
    assert info.tasks["sst2"].none_below == 0.5


def test_a_kind_that_reads_as_another_says_so():
    task = TaskInfo(
        name="mood", kind="poetry", form="single", metric="m", tap=0, layers=1, version=1, reads_as="regression"
    )
    info = EnsembleInfo(trunk="t", max_length=8, buckets=(8,), tasks={"mood": task})
    assert json.loads(info.text())["tasks"]["mood"]["reads_as"] == "regression"
    assert read_ensemble_info(info.text()) == info


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": None}, "schema None"),
        ({"max_length": 0}, "max_length"),
        ({"buckets": []}, "buckets"),
        ({"tasks": {"sst2": {"kind": "classification"}}}, r"tasks\.sst2\.form"),
        ({"tasks": ["sst2"]}, "tasks"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(change, found):
    with pytest.raises(ValueError, match=found) as raised:
        read_ensemble_info(json.dumps({**json.loads(TEXT), **change}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"'])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        read_ensemble_info(text)
