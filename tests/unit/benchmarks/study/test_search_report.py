"""The product's own report of a search: it needs nothing of the study, and has no bars of this project in it."""

import json

import pytest

from onetrunk.distill import write_report
from onetrunk.protocol.errors import UserError


def test_report_has_scores_plan_frontier_and_what_was_tried(whole_study):
    written = {path.name for path in write_report(whole_study.folder)}
    assert written == {
        *("README.md", "summary.json", "cost_split.png", "depth_blue.png", "depth_red.png", "frontier.png")
    }
    text = (whole_study.folder / "README.md").read_text()
    assert "| blue | accuracy | 82.0 ± 2.0 (3) | 81.0 | 81.0 ± 1.4 (2) | 82.0 (1) | 1 | 2 | cls | 98.8% |" in text
    assert "| chosen plan |" in text
    assert "| blue | teacher, stopped early | 0 | 3 | cls |" in text
    assert "search-heads report" in text
    for name in written - {"README.md"}:
        assert f"({name})" in text
    for of_the_study in ("Mixed", "KD-", "missed", "grid", "basis"):
        assert of_the_study not in text
    # 11 ms for the trunk, 9 + 2 x 0.5 for both heads, 0.75 for three steps, of 2 x 40 ms.
    summary = json.loads((whole_study.folder / "summary.json").read_text())
    assert summary["cost_share_by_table"] == pytest.approx(21.75 / 80)
    assert summary["retention_average"] == pytest.approx((0.81 + 0.61) / (0.82 + 0.60), abs=1e-6)


def test_report_of_a_search_without_a_plan_has_the_frontier_alone(whole_study):
    (whole_study.folder / "plan.toml").unlink()
    assert not {"cost_split.png"} & {path.name for path in write_report(whole_study.folder)}
    assert "chosen plan" not in (whole_study.folder / "README.md").read_text()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        write_report(tmp_path / "nowhere")
