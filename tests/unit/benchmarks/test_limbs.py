"""The page of limbs: what is not measured yet is said, and figures are those of the records."""

from __future__ import annotations

import pytest

from benchmarks.limbs import FAMILY, Records, page, summary

QUALITY = {
    "tasks": {
        **{task: {"metric": "accuracy", "full": 0.8, "student": 0.78, "layers": 2} for task in FAMILY},
        "cola": {"metric": "matthews", "full": 0.3, "student": 0.33, "layers": 3},
        "sst2": {"metric": "accuracy", "full": 0.9, "student": 0.9, "layers": 1},
    }
}


def test_nothing_is_claimed_without_records(tmp_path):
    found = summary(Records(tmp_path), None, QUALITY)
    assert (found["retention_average"], found["cost_share"]) == (None, None)
    assert "**not measured yet** of full fine-tuning" in page(found, Records(tmp_path))


def test_seeds_are_averaged_and_kept_on_disk(tmp_path):
    records = Records(tmp_path)
    for task in FAMILY:
        for seed, score in enumerate((0.79, 0.81)):
            records.add(f"{task} on limb seed {seed}", {"score": score})
            records.add(f"{task} on trunk seed {seed}", {"score": 0.7})
    records.add("rte on limb without it seed 0", {"score": 0.75})
    again = Records(tmp_path)
    found = summary(again, None, QUALITY)
    assert found["tasks"]["rte"]["on_limb"] == pytest.approx(0.8)
    assert found["tasks"]["rte"]["on_limb_that_never_saw_it"] == 0.75
    assert found["retention_average"] == pytest.approx((6 * 1.0 + 1.1 + 1.0) / 8)
    assert found["retention_min"] == pytest.approx(1.0)
    text = page(found, again)
    assert "| rte | accuracy | 70.0 | 80.0 ± 1.4 | +10.0 | 78.0 (2) | 80.0 | 100.0% | 75.0 |" in text
    assert "| mnli | accuracy | 70.0 | 80.0 ± 1.4 | +10.0 | 78.0 (2) | 80.0 | 100.0% | – |" in text
