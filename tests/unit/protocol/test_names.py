"""What a model is can be read from its name."""

from __future__ import annotations

import pytest

from onetrunk.protocol.names import Segment, group_name, group_tap, head_name, head_task, is_part, segment_named


@pytest.mark.parametrize(
    ("model", "segment", "task", "tap"),
    [
        (Segment(3, 12).name, Segment(3, 12), None, None),
        (head_name("s_2"), None, "s_2", None),
        (group_name(4), None, None, 4),
        ("heads_", None, None, None),
        ("tokenizer", None, None, None),
        ("multitask_tokens", None, None, None),
        ("candidate_rte", None, None, None),
    ],
)
def test_a_name_says_what_a_model_is(model, segment, task, tap):
    assert (segment_named(model), head_task(model), group_tap(model)) == (segment, task, tap)
    assert is_part(model) == any(found is not None for found in (segment, task, tap))
