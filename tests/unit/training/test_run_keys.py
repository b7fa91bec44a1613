"""The records in docs/results are found by their keys, so what a key hashes must not change."""

import json
from pathlib import Path

import pytest

from onetrunk.training.compute import ComputeConfig
from onetrunk.training.runs import RunStore

RECORDS = [
    record
    for record in RunStore(Path(__file__).parents[3] / "docs" / "results" / "quality" / "runs")
    # Students of other tasks' texts also hash the data of these tasks.
    if record.spec.distillation is None or not record.spec.distillation.other_texts
]


@pytest.mark.parametrize("role", ["full", "teacher", "student", "fork"])
def test_keys_of_recorded_runs_are_those_of_their_specs(role):
    records = [record for record in RECORDS if record.spec.role == role]
    assert records
    for record in records:
        compute = ComputeConfig(record.device, "fp32")
        assert record.spec.key(record.trunk, json.dumps(record.data), compute.identity) == record.key
