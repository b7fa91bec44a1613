"""How much of /dev/shm is needed, and what is said if there is less."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from onetrunk.protocol.errors import UserError
from onetrunk.serving import shared_memory
from onetrunk.serving.shared_memory import LEAST_SHARE_BYTES, MIB, check_room, full_batch_bytes, share_bytes


def tensor(name: str, kind: str, *dims: int) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": list(dims)}


def config(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> model_config_pb2.ModelConfig:
    values = {"max_batch_size": 32, "input": inputs, "output": outputs, **more}
    return json_format.ParseDict(values, model_config_pb2.ModelConfig())


MASK = tensor("attention_mask", "INT64", -1)
STATE = tensor("hidden_state", "FP32", -1, 384)
MODELS = {
    "tokenizer": config([tensor("text", "STRING", 1)], [MASK, tensor("token_words", "INT64", -1, 3)]),
    "trunk_00_01": config([tensor("input_ids", "INT64", -1), MASK], [STATE]),
    "trunk_01_02": config([STATE, MASK], [STATE]),
    "head_mood": config([STATE, MASK], [tensor("mood", "FP32", 2)]),
    "multitask": config([tensor("text", "STRING", 1)], [tensor("mood", "FP32", 2)], platform="ensemble"),
}


@pytest.mark.parametrize(
    # As measured in a real Triton for 128 tokens of width 384, whose hidden states take 6 MiB.
    ("model", "mib"),
    [("tokenizer", 1), ("trunk_00_01", 8), ("trunk_01_02", 15), ("head_mood", 8), ("multitask", 0)],
)
def test_a_region_is_as_large_as_was_measured(model: str, mib: int) -> None:
    assert full_batch_bytes(MODELS[model], 128) == mib * MIB


def test_a_share_holds_two_batches_and_more() -> None:
    assert share_bytes(MODELS["head_mood"], 128) == (1 + 2 * 7 + 8) * MIB
    assert share_bytes(MODELS["tokenizer"], 16) == LEAST_SHARE_BYTES


@pytest.mark.parametrize("free_mib", [31, 32, 52, 53])
def test_too_little_room_is_refused_and_little_room_is_said(monkeypatch: pytest.MonkeyPatch, free_mib: int) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free_mib * MIB)
    if free_mib < 32:
        with pytest.raises(UserError, match=r"has 31 MiB free, .* 32 texts of 128 tokens needs 32 MiB") as error:
            check_room(MODELS, 128)
        assert "--shm-size=64m" in str(error.value)
        assert "\n" not in str(error.value)
    else:
        # Growth is doubled, the first MiB is not: 32 + 7 + 14 + 7.
        warning = check_room(MODELS, 128)
        assert warning is not None
        assert f"has {free_mib} MiB free" in warning
        assert "needs 32 MiB; several at once need up to 60 MiB" in warning


def test_enough_room_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 60 * MIB)
    assert check_room(MODELS, 128) is None
