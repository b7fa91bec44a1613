"""What a model is can be read from its name."""

from __future__ import annotations

import pytest

from onetrunk.protocol.names import (
    LimbId,
    Segment,
    check_task_name,
    cut_trunk,
    group_name,
    head_name,
    head_task,
    hidden_name,
    is_group,
    is_part,
    segment_named,
    segments_below,
)

LIMB = LimbId("pairs_2", 2, 3, "0123456789ab")


@pytest.mark.parametrize(
    ("model", "segment", "task", "group"),
    [
        (Segment(3, 12).name, Segment(3, 12), None, False),
        (head_name("s_2"), None, "s_2", False),
        (LIMB.segment.name, LIMB.segment, None, False),
        (group_name(3, LIMB.label), None, None, True),
        (group_name(4), None, None, True),
        ("heads_", None, None, False),
        ("tokenizer", None, None, False),
        ("multitask_tokens", None, None, False),
        ("candidate_rte", None, None, False),
    ],
)
def test_a_name_says_what_a_model_is(model, segment, task, group):
    assert (segment_named(model), head_task(model), is_group(model)) == (segment, task, group)
    assert is_part(model) == (group or segment is not None or task is not None)


def test_a_limbs_names_say_where_it_stands() -> None:
    assert str(LIMB) == "pairs_2-2+1@0123456789ab"
    assert LimbId.parse(str(LIMB)) == LIMB
    segment = LIMB.segment
    assert segment.name == "limb_pairs_2_0123456789ab_02_03"
    assert segment.limb_id == LIMB
    assert segment.inputs(token_types=True) == ("hidden_02", "attention_mask")
    assert segment.output == "hidden_pairs_2_0123456789ab_03" == hidden_name(3, LIMB.label)


@pytest.mark.parametrize("identity", ["pairs", "pairs-2@0123456789ab", "p-2+0@0123456789ab", "P-2+1@0123456789ab", ""])
def test_an_identity_of_another_form_is_refused(identity: str) -> None:
    with pytest.raises(ValueError, match="such as pairs-2"):
        LimbId.parse(identity)


@pytest.mark.parametrize(
    ("state", "below"),
    [
        ("hidden_00", ["trunk_00_00"]),
        ("hidden_02", ["trunk_00_02"]),
        ("hidden_04", ["trunk_00_02", "trunk_02_04"]),
        (hidden_name(3, LIMB.label), ["trunk_00_02", LIMB.segment.name]),
    ],
)
def test_the_segments_below_a_state_are_those_that_it_needs(state: str, below: list[str]) -> None:
    segments = [*cut_trunk({0, 2, 4}), LIMB.segment, LimbId("other", 2, 4, "0" * 12).segment]
    assert [segment.name for segment in segments_below(segments, state)] == below


@pytest.mark.parametrize("name", ["hidden_02", hidden_name(3, LIMB.label)])
def test_no_task_has_the_name_of_a_state(name: str) -> None:
    with pytest.raises(ValueError, match="choose another name"):
        check_task_name(name)
