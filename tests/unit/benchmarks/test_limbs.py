"""The page of limbs: what is not measured yet is said, and figures are those of the records."""

from __future__ import annotations

import pytest

from benchmarks.limbs.page import limb_summary, page, summary
from benchmarks.limbs.shapes import PAIRS, SHAPES, TASKS, Records

QUALITY = {
    "tasks": {
        **{task: {"metric": "accuracy", "full": 0.8, "student": 0.78, "layers": 2} for task in PAIRS},
        "cola": {"metric": "matthews", "full": 0.3, "student": 0.33, "layers": 3},
        "sst2": {"metric": "accuracy", "full": 0.9, "student": 0.9, "layers": 1},
    }
}
KNOWN = {"quality": QUALITY, "base": QUALITY}
SHAPE, TAUGHT, DEEP, BASE = SHAPES


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path)
    for task in PAIRS:
        for seed, score in enumerate((0.79, 0.81)):
            found.add_head(SHAPE, task, seed, score=score)
            found.add_head(SHAPE, task, seed, where="trunk", score=0.7)
    found.add_head(SHAPE, "rte", 0, where="limb without it", score=0.75)
    return found


def test_nothing_is_claimed_without_records(tmp_path):
    found = summary(Records(tmp_path), {}, KNOWN)
    assert {one["retention_average"] for one in found["limbs"].values()} == {None}
    assert {one["cost_share"] for one in found["limbs"].values()} == {None}
    assert "`pairs`" not in page(found, Records(tmp_path)), "a limb of which nothing is known has no row"


def test_seeds_are_averaged_and_kept_on_disk(records, tmp_path):
    again = Records(tmp_path)
    found = summary(again, {}, KNOWN)
    one = found["limbs"]["pairs"]
    assert one["tasks"]["rte"]["on_limb"] == pytest.approx(0.8)
    assert one["tasks"]["rte"]["on_limb_that_never_saw_it"] == 0.75
    assert one["retention_average"] == pytest.approx((6 * 0.8 + 0.33 + 0.9) / (6 * 0.8 + 0.3 + 0.9))
    assert one["retention_min"] == pytest.approx(1.0)
    text = page(found, again)
    not_yet = "not measured yet"
    assert f"| rte | accuracy | 70.0 | {not_yet} | 80.0 ± 1.4 (+10.0) | 78.0 (2) | 80.0 | 100.0% | 75.0 |" in text
    assert f"| mnli | accuracy | 70.0 | {not_yet} | 80.0 ± 1.4 (+10.0) | 78.0 (2) | 80.0 | 100.0% | – |" in text


def test_all_eight_stand_on_a_limb_for_all(records):
    assert limb_summary(DEEP, records, None, QUALITY)["retention_average"] is None
    for task in TASKS:
        records.add_head(DEEP, task, 0, score=QUALITY["tasks"][task]["full"])
    assert limb_summary(DEEP, records, None, QUALITY)["retention_average"] == pytest.approx(1.0)
    assert limb_summary(SHAPE, records, None, QUALITY)["retention_average"] == pytest.approx(
        (6 * 0.8 + 0.33 + 0.9) / (6 * 0.8 + 0.3 + 0.9)
    )


def test_what_teachers_were_asked_about_besides_is_said(records):
    for task in DEEP.on_it:
        records.add_head(DEEP, task, 0, score=0.8)
    text = page(summary(records, {}, KNOWN), records)
    assert "| 80.0 | 100.0% |\n" in text
    assert "never saw a task was trained without rte, for 2 epochs" in text.split("`pairs`\n")[1].split("## ")[0]
    assert "never saw" not in text.split("## `all`")[1], "none has been trained"
    records.add_head(DEEP, "cola", 0, where="limb without it", score=0.2)
    text = page(summary(records, {}, KNOWN), records)
    assert "never saw a task was trained without cola, for 2 epochs" in text.split("## `all`")[1]
    assert "asked about the texts of glue/sst2/train_full.jsonl.gz without their labels for sst2" in text
    assert "changed copies of each train text for cola" in text
    assert [TAUGHT.head_recipe("cola").layers, DEEP.head_recipe("cola").layers] == [3, 1]
    assert [TAUGHT.head_recipe("cola").tap, DEEP.head_recipe("cola").tap] == [2, 3]
    assert TAUGHT.head_recipe("mnli").tap == 3


def test_heads_on_another_limb_are_forgotten(records):
    records.begin(SHAPE, PAIRS, "limb", "pairs-2+1@000000000000")
    assert records.scores(SHAPE, "rte") == []
    assert records.scores(SHAPE, "rte", where="trunk") == [0.7, 0.7]
    assert records.scores(SHAPE, "rte", where="limb without it") == [0.75]
    records.add_head(SHAPE, "rte", 0, score=0.6)
    records.begin(SHAPE, PAIRS, "limb", "pairs-2+1@000000000000")
    assert records.scores(SHAPE, "rte") == [0.6]
    records.begin(SHAPE, ("rte",), "limb without it", "pairs_without-2+1@000000000000")
    assert records.scores(SHAPE, "rte", where="limb without it") == []
    assert records.scores(SHAPE, "rte") == [0.6]


def test_a_guest_of_a_limb_counts_with_its_head_there(records):
    for task in TAUGHT.on_it:
        records.add_head(TAUGHT, task, 0, score=QUALITY["tasks"][task]["full"])
    assert limb_summary(TAUGHT, records, None, QUALITY)["retention_average"] is None, "CoLA is taught on the trunk"
    records.add_head(TAUGHT, "cola", 0, where="trunk", score=0.33)
    found = limb_summary(TAUGHT, records, None, QUALITY)
    assert found["tasks"]["sst2"]["kept"] == pytest.approx(1.0)
    assert found["retention_average"] == pytest.approx((6 * 0.8 + 0.33 + 0.9) / (6 * 0.8 + 0.3 + 0.9))
    text = page(summary(records, {}, KNOWN), records)
    assert "| sst2 | accuracy | – | 90.0 | 90.0 (1) | 90.0 | 100.0% |" in text
    assert "cola stays on the trunk, with 3 layers of its own on tap 2, taught by its head of the plan: 33.0." in text
    assert "; heads of sst2 stand on it, too; these heads of mnli, qnli, qqp, mrpc, stsb, sst2 taught it" in text


def test_a_head_that_was_trained_otherwise_has_no_record(records):
    old = {"score": 0.5, "how": {**TAUGHT.how("cola"), "layers": 2}}
    records.add(TAUGHT.key("cola", 0, where="trunk"), old)
    assert not records.has_head(TAUGHT, "cola", 0, where="trunk")
    assert records.scores(TAUGHT, "cola", where="trunk") == []
    records.add_head(TAUGHT, "cola", 0, where="trunk", score=0.6)
    assert records.scores(TAUGHT, "cola", where="trunk") == [0.6]


def test_a_limb_of_the_base_size_trunk_is_compared_with_that_trunks_study(records):
    alone = {task: {"metric": "accuracy", "full": 0.9, "student": None, "layers": None} for task in TASKS}
    alone["qnli"] = {"metric": None, "full": None, "student": None, "layers": None}
    for task in TASKS:
        records.add_head(BASE, task, 0, score=0.88)
    found = summary(records, {}, {**KNOWN, "base": {"tasks": alone}})
    assert found["limbs"]["base"]["tasks"]["rte"]["kept"] == pytest.approx(0.88 / 0.9)
    assert found["limbs"]["base"]["retention_min"] is None
    text = page(found, records)
    assert "`base`: 4 on tap 3 of the base-size trunk" in text
    assert "the plan of [base](../base/)" in text
    not_yet = "not measured yet"
    assert f"| rte | accuracy | {not_yet} | 88.0 | {not_yet} | 90.0 | 97.8% |" in text
    assert f"| qnli | {not_yet} | {not_yet} | 88.0 | {not_yet} | {not_yet} | {not_yet} |" in text
    assert BASE.head_recipe("rte").learning_rate < DEEP.head_recipe("rte").learning_rate
