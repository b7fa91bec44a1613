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
    "max_windows": "128",
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
    cut_text = cutting.beginning(text)
    row, cut_row = ((text, "a b"), (cut_text, "a b")) if pair else (text, cut_text)
    (expected,), (found,) = whole.encode([row]), cutting.encode([cut_row])
    assert found.ids == expected.ids
    assert found.type_ids == expected.type_ids
    assert bool(found.overflowing) == bool(expected.overflowing)


def test_long_texts_are_cut_in_a_tokenizer_of_berts_form_only(
    model: Any, module: Any, tmp_path: Path, tokenizer_json: str
) -> None:
    text = "a b " * 10_000
    assert len(model.encoder.beginning(text)) < 5_000
    other = json.loads(tokenizer_json)
    other["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "other").mkdir()
    model = start(module, tmp_path / "other", json.dumps(other))
    assert model.encoder.beginning(text) == text


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


# Windows of long texts: 14 tokens beside the two special ones, or 13 beside the three of a pair.


@pytest.fixture
def windows(model: Any, triton: ModuleType) -> Callable[..., Any]:
    """Asks where the windows of texts are, which is all that a request may ask of the model then."""

    def windows(*, overlap: float | None = None, **texts: Any) -> Any:
        inputs = tensors(**texts)
        if overlap is not None:
            inputs["window_overlap"] = np.full((len(texts["text"]), 1), overlap, dtype=np.float32)
        (response,) = model.execute([triton.Request(inputs, ["windows"])])
        return response

    return windows


def places(windows: np.ndarray) -> list[list[tuple[int, ...]]]:
    return [[tuple(place) for place in row if place[0] >= 0] for row in windows.tolist()]


def test_windows_overlap_and_read_the_whole_text(windows: Callable[..., Any]) -> None:
    texts = ["a b " * 15, "a b"]
    found = windows(text=texts).values()["windows"]
    assert found.dtype == np.int64
    # 14 words of one letter each, of which a quarter is read again.
    assert places(found) == [[(0, 27, 0, 0), (22, 49, 0, 0), (44, 59, 0, 0)], [(0, 3, 0, 0)]]
    assert places(windows(text=texts[:1], overlap=0).values()["windows"]) == [
        [(0, 27, 0, 0), (28, 55, 0, 0), (56, 59, 0, 0)]
    ]


@pytest.mark.parametrize("swap", [False, True])
def test_of_a_pair_the_longer_text_has_windows_beside_the_whole_of_the_other(
    windows: Callable[..., Any], swap: bool
) -> None:
    long, short = "a b " * 15, "good a"  # 13 - 2 tokens are left for the long one
    texts = {"text": [short], "text_pair": [long]} if swap else {"text": [long], "text_pair": [short]}
    expected = [(0, 21), (18, 39), (36, 57), (54, 59)]
    found = places(windows(**texts).values()["windows"])
    assert found == [[(0, 6, *place) if swap else (*place, 0, 6) for place in expected]]


def test_of_two_long_texts_each_has_half_the_room_and_the_shorter_is_cut(windows: Callable[..., Any]) -> None:
    (found,) = places(windows(text=["a " * 20], text_pair=["b " * 30]).values()["windows"])
    assert {place[:2] for place in found} == {(0, 11)}  # six of thirteen
    assert found[0][2:] == (0, 11)
    assert found[-1][3] == 59


def test_windows_are_what_the_model_reads_whole(
    windows: Callable[..., Any], ask: Callable[..., Any], triton: ModuleType
) -> None:
    text = "good movie , the a good cat " * 9
    (found,) = places(windows(text=[text]).values()["windows"])
    values = ask(text=[text[start:end] for start, end, *_ in found]).values()
    assert not values["truncated"].any()
    assert text[found[0][0] : found[0][1]] == text[: found[0][1]]
    whole = ask(text=[text]).values()
    size = int(values["token_count"][0, 0]) - 1
    assert whole["padded_input_ids"][0, :size].tolist() == values["padded_input_ids"][0, :size].tolist()


def test_there_are_no_more_windows_than_the_config_says(
    module: Any, tmp_path: Path, tokenizer_json: str, triton: ModuleType
) -> None:
    model = start(module, tmp_path, tokenizer_json, max_windows="3")
    request = triton.Request(tensors(text=["a " * 30_000]), ["windows"])
    (response,) = model.execute([request])
    assert response.values()["windows"].shape == (1, 3, 4)


@pytest.mark.parametrize("overlap", [-0.1, 0.51, float("nan"), float("inf")])
def test_an_overlap_out_of_range_is_refused(windows: Callable[..., Any], overlap: float) -> None:
    assert windows(text=["a", "b"], overlap=overlap).error.message.startswith("window_overlap 0: ")


def test_bad_texts_have_no_windows_and_harm_no_other_request(model: Any, triton: ModuleType) -> None:
    requests = [
        triton.Request(tensors(text=["a", ""]), ["windows"]),
        triton.Request(tensors(text=["a"]), ["windows"]),
        triton.Request(tensors(text=["a"]), OUTPUTS),
    ]
    bad, windows, tokens = model.execute(requests)
    assert bad.error.message.startswith("text 1: nothing to read")
    assert places(windows.values()["windows"]) == [[(0, 1, 0, 0)]]
    assert tokens.values()["token_count"].tolist() == [[3]]


def test_looking_for_windows_counts_no_text(model: Any, triton: ModuleType, windows: Callable[..., Any]) -> None:
    windows(text=["a b " * 15])
    assert not any(any(counted) for counted in model.counts.counted.values())


def test_who_asks_for_everything_gets_windows_of_texts_and_none_of_token_ids(model: Any, triton: ModuleType) -> None:
    everything = [*OUTPUTS, "token_words", "windows"]
    requests = [
        triton.Request(tensors(text=["a b"]), everything),
        triton.Request(tensors(input_ids=[[2, 4, 3]]), everything),
    ]
    texts, ids = model.execute(requests)
    assert texts.values()["windows"].tolist() == [[[0, 3, 0, 0]]]
    assert ids.values()["windows"].tolist() == [[[-1] * 4]]


def test_so_many_windows_that_others_would_wait_are_not_told_at_once(windows: Callable[..., Any]) -> None:
    long = " ".join(["film"] * 10_000)  # of which there are 128 windows at most
    assert windows(text=["a text"] * 32).error is None
    assert windows(text=[long] * 4).error is None
    assert "more than 512 windows together" in windows(text=["a text", *[long] * 4]).error.message
