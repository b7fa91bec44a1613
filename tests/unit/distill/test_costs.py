"""What a set of heads costs, by hand."""

import pytest

from onetrunk.distill.costs import BucketCosts, CostTable, PartCosts, Quartiles
from onetrunk.distill.plan import Option
from onetrunk.protocol.errors import UserError

RATES = PartCosts(
    trunk_ms=(1.0, 11.0, 21.0, 31.0, 41.0),
    layer_ms=9.0,
    folded_ms=0.5,
    step_ms=0.25,
    single_ms=42.0,
    folded_single_ms=33.0,
)


def head(tap, layers, task="a"):
    return Option(task=task, tap=tap, layers=layers, query="cls", score=0.8, full=0.8)


def fixed(value):
    return Quartiles(median=value, low=value, high=value)


def bucket(tokens, batch_size, scale=1.0):
    return BucketCosts(
        tokens=tokens,
        batch_size=batch_size,
        trunk_ms=tuple(fixed(scale * value) for value in (1.5, 11.5, 21.5)),
        layer_ms=fixed(scale * 9),
        folded_ms=fixed(scale * 1.5),
        step_ms=fixed(scale * 0.5),
        single_ms=fixed(scale * 24.5),
        folded_single_ms=fixed(scale * 16.5),
    )


def table(*buckets):
    return CostTable(trunk="bert-2x8@0", machine="m", versions={}, threads=1, repeats=3, buckets=buckets)


def test_trunk_once_a_step_for_each_tap_and_head_and_whole_layers_beyond_the_folded_one():
    cost = RATES.cost([head(2, 1), head(1, 3), head(1, 1)])
    assert cost.trunk_ms == 21.0
    assert cost.heads_ms == pytest.approx(3 * 0.5 + 2 * 9.0)
    assert cost.overhead_ms == pytest.approx((2 + 3) * 0.25)
    assert cost.total_ms == pytest.approx(21 + 19.5 + 1.25)
    assert cost.share == pytest.approx(41.75 / (3 * 42))
    assert cost.folded_share == pytest.approx(41.75 / (3 * 33))


def test_the_segment_above_tap_0_embeds_again():
    assert RATES.cost([head(0, 1), head(1, 1)]).trunk_ms == 12.0
    assert RATES.cost([head(0, 1)]).trunk_ms == 1.0


@pytest.mark.parametrize(("tap", "layers"), [(4, 1), (2, 3), (9, 1)])
def test_a_head_that_the_trunk_has_no_room_for_is_refused(tap, layers):
    with pytest.raises(UserError, match="tap and layers together are 4 at most"):
        RATES.cost([head(tap, layers)])


def test_no_heads_have_no_cost():
    with pytest.raises(UserError, match="give one head at least"):
        RATES.cost([])


def test_a_table_gives_milliseconds_for_one_text_and_takes_the_step_out_of_the_parts():
    rates = table(bucket(32, 2)).per_text()
    assert rates == PartCosts((0.5, 5.5, 10.5), 4.5, 0.5, 0.25, 12.25, 8.25)


def test_the_step_of_a_server_takes_the_place_of_the_measured_one_in_singles_too():
    rates = table(bucket(32, 1)).per_text(step_ms=2.0)
    assert rates == PartCosts((1.0, 11.0, 21.0), 9.0, 1.0, 2.0, 26.0, 18.0)


def test_buckets_count_alike_and_can_be_named():
    both = table(bucket(32, 1), bucket(128, 1, scale=3))
    assert both.per_text().single_ms == pytest.approx(2 * 24.5)
    assert both.per_text(tokens=128).single_ms == pytest.approx(73.5)
    assert both.per_text().cost([head(0, 1)]).trunk_ms == pytest.approx(2.0)
    with pytest.raises(UserError, match="it has 32 x 1, 128 x 1"):
        both.per_text(tokens=64)


def test_negative_difference_is_no_gain():
    noisy = bucket(32, 1).model_copy(update={"layer_ms": fixed(-0.1), "folded_ms": fixed(0.4)})
    rates = table(noisy).per_text()
    assert (rates.layer_ms, rates.folded_ms) == (0.0, 0.0)


def test_a_table_is_read_as_it_was_written(tmp_path):
    written = table(bucket(32, 1), bucket(64, 8, scale=1 / 3))
    written.write(tmp_path / "new" / "costs.json")
    assert CostTable.read(tmp_path / "new" / "costs.json") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["costs.json"]


@pytest.mark.parametrize("text", ["", "{}", '{"trunk": 1}', "[1]"])
def test_broken_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"costs\.json: .*; delete it and measure again") as error:
        CostTable.read(path)
    assert "\n" not in str(error.value)


def test_a_missing_table(tmp_path):
    with pytest.raises(UserError, match="no such cost table"):
        CostTable.read(tmp_path / "costs.json")
