"""README and plots of a study, and what a broken study ends in."""

import struct

import pytest

from benchmarks.study.linear import LinearComparison, measure_linear
from benchmarks.study.report import write_quality_report
from onetrunk.protocol.errors import UserError


def rows_of(writer):
    write_quality_report(writer.folder)
    return (writer.folder / "README.md").read_text()


def test_the_readme_says_each_goal_with_its_verdict(whole_study):
    text = rows_of(whole_study)
    assert "| at least 99.6%, aim above 100% | 100.00% | met |" in text
    assert "| at least 97.0% | 98.78% (blue) | met |" in text
    assert "| at most 25.0% | 25.0% (20.0% to 30.0% by text length and batch) | met |" in text
    assert "| at most 2x | 1.20x (1.30x with the trunk's passes) | met |" in text
    # The cheapest: the student of one layer on tap 1 for both, 11 + 2 x 0.5 + 3 x 0.25 of 2 x 40 ms.
    assert "| 12.0% of the cost | 15.9% by the cost table" in text


def test_a_missed_goal_is_said_plainly(whole_study):
    whole_study.share(((1, 1, "cls"), (1, 2, "cls")), shares=(0.3, 0.4))
    assert "**missed by 10.00 points**" in rows_of(whole_study)


def test_the_readme_has_the_tables(whole_study):
    measure_linear(whole_study.folder, {"blue": LinearComparison(0.5), "red": LinearComparison(0.4)})
    text = rows_of(whole_study)
    assert "| blue | accuracy | 82.0 ± 2.0 (3) | 81.0 | 81.0 ± 1.4 (2) | 82.0 (1) | 1 | 2 | cls | 98.8% |" in text
    assert "| red | accuracy | 60.0 (1) | 62.0 | 61.0 (1) | – | 1 | 1 | cls | 101.7% |" in text
    # Grid 15 + 15 + 10, the search's probes and teachers 3 + 10 + 5.
    assert "| blue | tap 0, top 3 | 83.0 | tap 1, top 2 | 81.0 | -2.0 | 2.0 | 40 | 18 | 55% |" in text
    assert "| all | 6 | 2 | 2 | 3 | 48 | 40 | 1.20x | 4 |" in text
    assert (
        "| start | mean | against basis | blue | red |\n|---|---|---|---|---|\n| basis | 70.0 |  | 80.0 | 60.0 |"
        in text
    )
    assert "| random | 67.0 | -3.0 | 75.0 | 59.0 |" in text
    assert "| 4 | 69.5 | -0.5 | 78.0 | 61.0 |" in text
    assert "| KD-1 |" in text
    assert "| Mixed-3 |" in text
    assert "not measured yet" not in text


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("plan.toml", "there is no plan yet"),
        ("share.json", "The plan's cost, measured directly: not measured yet."),
        ("costs.json", "not measured yet (the costs of trunk and heads have not been measured)"),
        ("runs/blue.grid.json", "The full grids: not measured yet."),
        ("runs/blue.search.json", "not measured yet (task blue has not been searched yet"),
    ],
)
def test_what_is_missing_is_said_to_be_not_measured(whole_study, missing, said):
    (whole_study.folder / missing).unlink()
    assert said in rows_of(whole_study)


def test_an_empty_study_gives_a_report(writer):
    writer.folder.mkdir()
    assert "average of 0 tasks: **not measured yet**" in rows_of(writer)


def test_rebuilding_changes_no_byte(whole_study):
    first = {path: path.read_bytes() for path in write_quality_report(whole_study.folder)}
    second = {path: path.read_bytes() for path in write_quality_report(whole_study.folder)}
    assert first == second
    assert not list(whole_study.folder.glob(".*"))


def test_the_plots_are_images_of_less_than_100_kb(whole_study):
    write_quality_report(whole_study.folder)
    plots = sorted(whole_study.folder.glob("*.png"))
    assert [path.name for path in plots] == ["cost_split.png", "depth_blue.png", "depth_red.png", "frontier.png"]
    text = (whole_study.folder / "README.md").read_text()
    for path in plots:
        image = path.read_bytes()
        width, height = struct.unpack(">II", image[16:24])
        assert image.startswith(b"\x89PNG")
        assert width > 500
        assert height > 300
        assert len(image) < 100_000
        assert f"]({path.name})" in text


def test_a_plot_that_nothing_stands_behind_any_more_is_removed(whole_study):
    write_quality_report(whole_study.folder)
    (whole_study.folder / "costs.json").unlink()
    write_quality_report(whole_study.folder)
    assert not (whole_study.folder / "frontier.png").exists()
    assert "frontier.png" not in (whole_study.folder / "README.md").read_text()


@pytest.mark.parametrize(
    "broken", ["runs/blue-full-0123.json", "runs/blue.search.json", "plan.toml", "costs.json", "share.json"]
)
def test_a_broken_file_is_named_in_one_line(whole_study, broken):
    (whole_study.folder / broken).write_text("{")
    with pytest.raises(UserError) as caught:
        write_quality_report(whole_study.folder)
    assert broken in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        write_quality_report(tmp_path / "nowhere")
