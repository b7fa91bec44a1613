"""Batches: every row once, none too large, rows of about one length together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onetrunk.client.rows import MAX_BATCH_BYTES, WINDOW_BATCHES, Group, plan_batches
from onetrunk.protocol.ensemble_info import TaskInfo

ONE = TaskInfo(name="one", kind="regression", form="single", metric="m", tap=1, layers=1, version=1)
TWO = TaskInfo(name="two", kind="regression", form="pair", metric="m", tap=1, layers=1, version=1)


@given(
    sizes=st.lists(st.one_of(st.integers(1, 500), st.integers(1, 2 * MAX_BATCH_BYTES)), max_size=200),
    max_rows=st.integers(1, 40),
    data=st.data(),
)
def test_every_row_is_in_one_batch_of_its_own_tasks(sizes, max_rows, data):
    paired = [data.draw(st.booleans()) for _ in sizes]
    groups = [
        Group(tuple(row for row, pair in enumerate(paired) if not pair), (ONE,)),
        Group(tuple(row for row, pair in enumerate(paired) if pair), (TWO,)),
    ]
    batches = plan_batches(groups, sizes, max_rows=max_rows)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch.rows) <= max_rows
        assert len(batch.rows) == 1 or sum(sizes[row] for row in batch.rows) <= MAX_BATCH_BYTES
        assert {paired[row] for row in batch.rows} == {batch.tasks == (TWO,)}


def test_equal_lengths_meet_within_a_window():
    window = 4 * WINDOW_BATCHES
    sizes = [10, 90] * window  # two windows
    batches = plan_batches([Group(tuple(range(len(sizes))), (ONE,))], sizes, max_rows=4)
    assert all(len({sizes[row] for row in batch.rows}) == 1 for batch in batches)
    first_half, second_half = batches[:WINDOW_BATCHES], batches[WINDOW_BATCHES:]
    assert max(row for batch in first_half for row in batch.rows) == window - 1
    assert min(row for batch in second_half for row in batch.rows) == window


def test_no_more_batches_than_needed():
    assert len(plan_batches([Group(tuple(range(65)), (ONE,))], [7] * 65, max_rows=32)) == 3
