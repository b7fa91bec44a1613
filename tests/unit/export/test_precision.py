"""What --precision may say."""

import pytest

from onetrunk.export.precision import parse_precision
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import FP32, Precision
from onetrunk.protocol.names import Segment


@pytest.mark.parametrize(
    ("text", "trunk", "heads"),
    [
        ("fp32", "fp32", "fp32"),
        ("int8", "int8", "int8"),
        ("trunk=fp32,heads=int8", "fp32", "int8"),
        ("heads = fp16, trunk = int8", "int8", "fp16"),
        ("heads=int8", "fp32", "int8"),
    ],
)
def test_one_for_all_or_one_for_each_part(text, trunk, heads):
    assert parse_precision(text) == Precision(trunk=trunk, heads=heads)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4", "'int4' is not known; give fp32, int8, fp16"),
        ("", "'' is not known"),
        ("trunk=fp8", "'fp8' is not known"),
        ("tail=int8", "no part 'tail'; parts are trunk and heads"),
        ("heads=int8,heads=fp16", "'heads' is given twice"),
    ],
)
def test_anything_else_is_told_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_precision(text)
    assert "\n" not in str(raised.value)


def test_embeddings_alone_stay_fp32():
    assert Precision(trunk="int8").of_segment(Segment(0, 0)) == "fp32"
    assert Precision(trunk="int8").of_segment(Segment(0, 1)) == "int8"


def test_is_written_as_it_is_read():
    assert [str(FP32), str(Precision(heads="int8"))] == ["fp32", "trunk=fp32,heads=int8"]
    assert parse_precision(str(Precision(heads="int8"))) == Precision(heads="int8")
