"""What a build is planned to be, before anything is exported."""

from dataclasses import replace

import pytest

from onetrunk.nn.families import FAMILIES, find_family
from onetrunk.nn.families.bert import BertEncoder
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Precision
from onetrunk.repository import BuildRequest, build_repository, plan


@pytest.fixture
def request_of(tiny_heads, tiny_trunk_folder, tmp_path):
    def make(*tasks):
        return BuildRequest(
            output=tmp_path / "repository", heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, tasks=list(tasks)
        )

    return make


# The tiny trunk in fp32: embeddings of 32 numbers for each of 104 pieces, 64 positions and 2 types, and a LayerNorm; a
# layer of 8,544 numbers. Heads on taps 0, 1 and 3.
EMBEDDINGS, LAYER = 4 * (32 * (104 + 64 + 2) + 64), 4 * 8_544


def test_a_trunk_that_loses_too_much_in_int8_is_refused(request_of, monkeypatch):
    assert [family for family in FAMILIES if not find_family(family).fits_int8] == ["eurobert"]
    monkeypatch.setattr(BertEncoder, "fits_int8", False)
    reduced = replace(request_of("mood"), precision=Precision(trunk="int8", heads="int8"))
    with pytest.raises(UserError, match=r"--precision int8: .* family bert lose too much in int8; give trunk=fp32"):
        build_repository(reduced)


@pytest.mark.parametrize(
    ("tasks", "largest", "named"),
    [
        (("mood",), EMBEDDINGS + 3 * LAYER, "trunk_00_03"),
        (("mood", "match"), 2 * LAYER, "trunk_01_03"),
        (("match",), 2 * LAYER, "match"),
    ],
)
def test_a_model_that_no_onnx_file_can_hold_is_found_before_anything_is_exported(
    request_of, tmp_path, monkeypatch, tiny_trunk, tasks, largest, named
):
    assert tiny_trunk.vocab_size == 104, "else the numbers above are of another trunk"
    monkeypatch.setattr(plan, "MAX_ONNX_BYTES", largest - 1)
    with pytest.raises(UserError, match="an ONNX file holds at most") as raised:
        build_repository(request_of(*tasks))
    assert "\n" not in str(raised.value)
    assert named in str(raised.value)
    assert not list((tmp_path / "repository").glob("*/*"))
