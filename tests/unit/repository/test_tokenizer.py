"""The tokenizer model: what it makes of good input, and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fixtures.tokenizers import start_tokenizer, text_inputs

PAD, CLS, SEP, A, B, GOOD = 0, 2, 3, 4, 5, 26
OUTPUTS = ["padded_input_ids", "padded_attention_mask", "padded_token_type_ids", "truncated", "token_count"]
PARAMETERS = {
    "max_length": "16",
    "buckets": "4,8,16",
    "vocab_size": "28",
    "max_text_bytes": "65536",
    "pad_token_id": "0",
}


def start(module: Any, folder: Path, tokenizer_json: str, **changes: str) -> Any:
    return start_tokenizer(module, folder, tokenizer_json, {**PARAMETERS, **changes})


@pytest.fixture
def module(load: Callable[[str], Any]) -> Any:
    return load("builder/onetrunk/repository/tokenizer/model.py")


@pytest.fixture
def model(module: Any, tmp_path: Path, tokenizer_json: str) -> Any:
    return start(module, tmp_path, tokenizer_json)


@pytest.fixture
def ask(model: Any, triton: ModuleType) -> Callable[..., Any]:
    """Asks with one request: texts as strings or bytes, ids as nested lists."""

    def ask(**inputs: Any) -> Any:
        (response,) = model.execute([triton.Request(tensors(**inputs), OUTPUTS)])
        return response

    return ask


def tensors(**inputs: Any) -> dict[str, np.ndarray]:
    return {
        name: text_inputs(value)["text"] if name.startswith("text") else np.array(value, dtype=np.int64)
        for name, value in inputs.items()
    }


def test_pads_a_request_to_the_smallest_bucket_of_its_longest_row(ask: Callable[..., Any]) -> None:
    values = ask(text=["a", "a b a"]).values()
    assert values["padded_input_ids"].tolist() == [
        [CLS, A, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, A, B, A, SEP, PAD, PAD, PAD],
    ]
    assert values["padded_attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert not values["padded_token_type_ids"].any()
    assert values["truncated"].tolist() == [[False], [False]]
    assert all(values[name].dtype == np.int64 for name in OUTPUTS[:3])
    assert values["truncated"].dtype == np.bool_


@pytest.mark.parametrize(("words", "bucket"), [(2, 4), (3, 8), (6, 8), (7, 16), (14, 16)])
def test_every_length_gets_its_bucket(ask: Callable[..., Any], words: int, bucket: int) -> None:
    values = ask(text=["a " * words]).values()
    assert values["padded_input_ids"].shape == (1, bucket)
    assert not values["truncated"].any()


def test_a_pair_has_types_and_an_empty_second_text_is_none(ask: Callable[..., Any]) -> None:
    values = ask(text=["a", "a"], text_pair=["b", ""]).values()
    assert values["padded_input_ids"].tolist() == [[CLS, A, SEP, B, SEP, 0, 0, 0], [CLS, A, SEP, 0, 0, 0, 0, 0]]
    assert values["padded_token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0] * 8]
    assert values["token_count"].tolist() == [[5], [3]]


def test_truncates_at_the_last_bucket_and_says_so(ask: Callable[..., Any]) -> None:
    values = ask(text=["a " * 15, "a " * 14]).values()
    assert values["truncated"].tolist() == [[True], [False]]
    assert values["token_count"].tolist() == [[16], [16]]
    assert values["token_count"].dtype == np.int64
    assert values["padded_input_ids"][0].tolist() == [CLS, *[A] * 14, SEP]


def test_truncates_the_longest_of_a_pair_first(ask: Callable[..., Any]) -> None:
    values = ask(text=["a " * 20], text_pair=["b b"]).values()
    assert values["padded_input_ids"][0].tolist() == [CLS, *[A] * 11, SEP, B, B, SEP]
    assert values["truncated"].all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing to read"),
        (" \t\r\n", "nothing to read"),
        ("\0", "nothing to read"),
        ("\x01\x02\x7f", "nothing to read"),
        ("\u200e\u200f\ufeff", "nothing to read"),  # direction marks, byte order mark
        (b"a \xff\xfe", "not valid UTF-8 (byte 2)"),
        (b"\xed\xa0\x80", "not valid UTF-8 (byte 0)"),  # half a surrogate pair
        (b"a" * 65537, "65537 bytes; allowed: 65536"),
    ],
)
def test_bad_text_is_refused_with_its_row(
    ask: Callable[..., Any], triton: ModuleType, text: str | bytes, complaint: str
) -> None:
    error = ask(text=["a", "b", text]).error
    assert error.code == triton.TritonError.INVALID_ARG
    assert error.message.startswith("text 2: ")
    assert complaint in error.message
    if text:  # an empty second text is allowed
        error = ask(text=["a", "b"], text_pair=["a", text]).error
        assert error.message.startswith("text_pair 1: ")
        assert complaint in error.message


@pytest.mark.parametrize("text", ["a\0b", "😀 a", "שלום a", "a\u202eb", "e\u0301", "a" * 65536, "[SEP]", "日本語"])
def test_odd_text_gets_an_answer(ask: Callable[..., Any], text: str) -> None:
    values = ask(text=[text]).values()
    assert values["padded_attention_mask"].sum() >= 3


def test_token_ids_are_padded_and_their_own_padding_is_cut(ask: Callable[..., Any]) -> None:
    values = ask(
        input_ids=[[CLS, A, SEP, 0, 0, 0], [CLS, SEP, 0, 0, 0, 0]],
        attention_mask=[[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
        token_type_ids=[[0, 0, 1, 0, 0, 0], [0] * 6],
    ).values()
    assert values["padded_input_ids"].tolist() == [[CLS, A, SEP, PAD], [CLS, SEP, PAD, PAD]]
    assert values["padded_attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert values["padded_token_type_ids"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


def test_a_missing_mask_is_ones_and_missing_types_are_zeros(ask: Callable[..., Any]) -> None:
    values = ask(input_ids=[[CLS, PAD, SEP]]).values()
    assert values["padded_attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert values["padded_token_type_ids"].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[2, 3], [2, 28]]}, "input_ids 1: id 28 is not in the vocabulary (0 to 27)"),
        ({"input_ids": [[2, -1]]}, "input_ids 0: id -1 is not in the vocabulary (0 to 27)"),
        ({"input_ids": [[2, 1 << 40]]}, f"input_ids 0: id {1 << 40} is not"),
        ({"input_ids": [[]]}, "input_ids 0: 0 tokens; allowed: 1 to 16"),
        ({"input_ids": [[2] * 17]}, "input_ids 0: 17 tokens; allowed: 1 to 16"),
        ({"input_ids": [[2, 3]], "attention_mask": [[1, 2]]}, "attention_mask 0: only 0 and 1"),
        ({"input_ids": [[2, 3]], "attention_mask": [[0, 1]]}, "attention_mask 0: a 1 after a 0"),
        ({"input_ids": [[2, 3]], "attention_mask": [[0, 0]]}, "input_ids 0: 0 tokens"),
        ({"input_ids": [[2, 3]], "attention_mask": [[1]]}, "attention_mask 0: 1 numbers a row, but input_ids has 2"),
        ({"input_ids": [[2, 3]], "token_type_ids": [[0, 2]]}, "token_type_ids 0: only 0 and 1"),
        ({}, "give text (and text_pair), or input_ids"),
        ({"text_pair": ["a"]}, "found: text_pair"),
        ({"text": ["a"], "input_ids": [[2, 3]]}, "found: text, input_ids"),
        ({"text": ["a"], "attention_mask": [[1, 1]]}, "found: text, attention_mask"),
    ],
)
def test_bad_requests_are_refused(
    ask: Callable[..., Any], triton: ModuleType, inputs: dict[str, Any], message: str
) -> None:
    error = ask(**inputs).error
    assert error.code == triton.TritonError.INVALID_ARG
    assert message in error.message


def test_bad_requests_leave_those_beside_them_alone(model: Any, triton: ModuleType) -> None:
    inputs: list[dict[str, Any]] = [
        {"text": ["a"]},
        {"text": [b"\xff"]},
        {"text": ["a b", "b"]},
        {"input_ids": [[2, 99]]},
        {"text": [" "]},
        {"input_ids": [[2, 4, 3]]},
        {},
        {"text": ["b"], "text_pair": ["a"]},
    ]
    requests = [triton.Request(tensors(**each), OUTPUTS) for each in inputs]
    together = model.execute(requests)
    assert [response.error is None for response in together] == [True, False, True, False, False, True, False, True]
    for request, response in zip(requests, together, strict=True):
        (alone,) = model.execute([request])
        if response.error is None:
            assert {k: v.tolist() for k, v in response.values().items()} == {
                k: v.tolist() for k, v in alone.values().items()
            }
        else:
            assert response.error.message == alone.error.message


def test_all_texts_of_all_requests_are_encoded_in_one_call(model: Any, triton: ModuleType) -> None:
    calls = []
    encode = model.encoder.encode
    model.encoder.encode = lambda rows: calls.append(len(rows)) or encode(rows)
    model.execute([triton.Request(tensors(text=["a"] * n), OUTPUTS) for n in (1, 2, 3)])
    assert calls == [6]


def test_what_was_read_is_counted_by_bucket_and_told_once_a_second(
    model: Any, ask: Callable[..., Any], triton: ModuleType
) -> None:
    def told(name: str) -> dict[str, float]:
        metrics = triton.MetricFamily.made[name].metrics
        return {metric.labels["bucket"]: metric.value for metric in metrics if metric.value}

    ask(text=["a", "a b a"])  # 3 and 5 tokens in a bucket of 8
    ask(text=["a " * 40])
    ask(input_ids=[[CLS, A, SEP]])
    ask(text=["\t"])  # is refused, and counts for nothing
    assert told("onetrunk_texts_total") == {}
    model.counts.told_at -= 1.0
    ask(text=["a b"])
    assert told("onetrunk_texts_total") == {"4": 2, "8": 2, "16": 1}
    assert told("onetrunk_tokens_total") == {"4": 3 + 4, "8": 3 + 5, "16": 16}
    assert told("onetrunk_padding_total") == {"4": 1, "8": 5 + 3}
    assert told("onetrunk_truncated_texts_total") == {"16": 1}


def test_only_requested_outputs_are_returned(model: Any, triton: ModuleType) -> None:
    (response,) = model.execute([triton.Request(tensors(text=["a"]), ["truncated"])])
    assert list(response.values()) == ["truncated"]


PIECES = st.sampled_from(
    [
        "a",
        "abc ",
        "j" * 130,
        "é",
        "e\u0301\u0323",
        "日本",
        " ",
        "\u3000",
        "\0",
        ".",
        "!?",
        "[SEP]",
        "[MA",
        "good bad ",
        "😀",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, min_size=1, max_size=12), st.integers(1, 700), st.text(max_size=5), st.booleans())
@example(["a"], 4000, "", False)  # one word, nothing to cut at
@example([" "], 4000, "good", False)  # the only word stands at the end
@example(["\0"], 4000, "good", True)
def test_cutting_a_long_text_changes_nothing(
    module: Any, tmp_path: Path, tokenizer_json: str, pieces: list[str], times: int, end: str, pair: bool
) -> None:
    text = "".join(pieces) * times + end
    limits = module.Settings.from_config(
        {"parameters": {key: {"string_value": value} for key, value in PARAMETERS.items()}}
    )
    cutting = module.TextEncoder(tokenizer_json, limits)
    whole = module.TextEncoder(tokenizer_json, limits)
    whole.enough_tokens = None
    cut_text = cutting._cut(text)
    row, cut_row = ((text, "a b"), (cut_text, "a b")) if pair else (text, cut_text)
    (expected,), (found,) = whole.encode([row]), cutting.encode([cut_row])
    assert found.ids == expected.ids
    assert found.type_ids == expected.type_ids
    assert bool(found.overflowing) == bool(expected.overflowing)


def test_long_texts_are_cut_in_a_tokenizer_of_berts_form_only(
    model: Any, module: Any, tmp_path: Path, tokenizer_json: str
) -> None:
    text = "a b " * 10_000
    assert len(model.encoder.read(text.encode(), "text 0")) < 5_000
    other = json.loads(tokenizer_json)
    other["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "other").mkdir()
    model = start(module, tmp_path / "other", json.dumps(other))
    assert model.encoder.read(text.encode(), "text 0") == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": "8,4,16"}, "buckets are 8,4,16"),
        ({"buckets": "4,8"}, "the last one max_length (16)"),
        ({"buckets": "4,x"}, "not a number"),
        ({"vocab_size": "20"}, "they belong to different trunks"),
    ],
)
def test_a_config_that_makes_no_sense_does_not_load(
    module: Any, triton: ModuleType, tmp_path: Path, tokenizer_json: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(triton.TritonModelException, match=r"^tokenizer: ") as error:
        start(module, tmp_path, tokenizer_json, **changes)
    assert message in str(error.value)


def test_a_broken_tokenizer_file_does_not_load(module: Any, triton: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(triton.TritonModelException, match=r"^tokenizer: "):
        start(module, tmp_path, "{}")
