"""The tokenizer model with the tokenizers of other families than BERT: words, pairs, padding, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from onetrunk.protocol.words import token_places
from onetrunk.tasks.examples import token_offsets
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import word_spans
from tests.fixtures.tokenizers import FORMS, read_tags, text_inputs, tokenizer_json_of, words_read

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
OUTPUTS = ["padded_input_ids", "padded_attention_mask", "padded_token_type_ids", "truncated"]
SPECIALS = {"roberta": ("<s>", "</s>", "<pad>"), "bert": ("[CLS]", "[SEP]", "[PAD]")}


def specials(form: str) -> tuple[str, str, str]:
    """The tokens that begin, end and pad a text."""
    return SPECIALS["bert" if form in ("bert", "modernbert", "deberta_v3") else "roberta"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, the world", [("Hello", 0, 5), (",", 5, 6), ("the", 7, 10), ("world", 11, 16)]),
        (
            "didn't!...",
            [("didn", 0, 4), ("'", 4, 5), ("t", 5, 6), ("!", 6, 7), *[(".", at, at + 1) for at in (7, 8, 9)]],
        ),
        ("caf\u00e9 cafe\u0301, a", [("caf\u00e9", 0, 4), ("cafe\u0301", 5, 10), (",", 10, 11), ("a", 12, 13)]),
        ("日本語の one", [("日", 0, 1), ("本", 1, 2), ("語", 2, 3), ("の", 3, 4), ("one", 5, 8)]),
        (f"{FAMILY} ❤\ufe0f.👍🏽", [(FAMILY, 0, 5), ("❤\ufe0f", 6, 8), (".", 8, 9), ("👍🏽", 9, 11)]),
        ("\t a\r\nb   c ", [("a", 2, 3), ("b", 5, 6), ("c", 9, 10)]),
    ],
)
def test_words_are_the_same_in_every_form(
    tokenized: Callable[..., Any], form: str, text: str, expected: list[tuple[str, int, int]]
) -> None:
    row, beside = tokenized(tokenizer_json_of(form), text, "a film", pair="the music")
    assert words_read(row) == expected
    assert words_read(beside) == [("a", 0, 1), ("film", 2, 6)]


def test_a_word_that_shares_its_token_has_the_tag_of_the_token(tokenized: Callable[..., Any]) -> None:
    (row,) = tokenized(tokenizer_json_of("roberta"), "the café didn't...")
    tokens = Tokenizer.from_str(tokenizer_json_of("roberta")).encode("the café didn't...").tokens
    assert tokens[-3:] == ["'t", "...", "</s>"]
    tags = [0] * 64
    tags[len(tokens) - 3], tags[len(tokens) - 2] = 3, 4  # an album: 't...
    said = read_tags(row, tags)
    assert [(span.type, span.text, span.start, span.end) for span in said.spans] == [("album", "'t...", 13, 18)]
    assert [(word.text, word.tag) for word in said.words] == [
        ("the", "O"), ("café", "O"), ("didn", "O"), ("'", "B-album"), ("t", "I-album"), *[(".", "I-album")] * 3
    ]  # fmt: skip


def test_tokens_of_blanks_are_inside_the_span_around_them(tokenized: Callable[..., Any], form: str) -> None:
    """Byte-level tokenizers have tokens for blanks. The data's spans have no gaps there, and come back whole."""
    text, kind = "play nina   \t simone  now", get_kind("tagging")
    task = SimpleNamespace(labels=("artist", "album"), range=None, options={}, fitted={})
    encoded = kind.codec.encode(["O", "B-artist", "I-artist", "O"], task, text)
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    targets = kind.codec.targets([encoded], task, token_offsets(tokenizer, [text], 64))
    tags, words = targets[0].T
    inside = np.flatnonzero(tags)
    assert tags[inside].tolist() == [1, *[2] * (len(inside) - 1)]
    assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
    if form in ("roberta", "modernbert"):
        assert (words[inside] == -1).any()
    ((found, gold),) = word_spans(tags[None], targets)
    assert found == gold == {(1, 2, "0")}
    said = read_tags(tokenized(tokenizer_json_of(form), text)[0], np.pad(tags, (0, 64 - len(tags))))
    assert [(span.type, span.start, span.end) for span in said.spans] == [("artist", 5, 20)]


@pytest.mark.parametrize(
    "text", ["", " ", "   ", "\t\n", "\u3000", "\x00", "\ufffd", "\u0301\u0323", "\ufe0f", "\u200b"]
)
def test_nothing_to_read_is_refused_in_every_form(
    started: Callable[..., Any], triton: ModuleType, form: str, text: str
) -> None:
    model = started(tokenizer_json_of(form), max_length=16)
    for name, inputs in (("text", text_inputs(["a", text])), ("text_pair", text_inputs(["a", "b"], ["c", text]))):
        (response,) = model.execute([triton.Request(inputs, OUTPUTS)])
        if name == "text_pair" and not text:
            assert response.error is None  # the row has no second text
        else:
            assert response.error.message.startswith(f"{name} 1: nothing to read")


def encode(started: Callable[..., Any], triton: ModuleType, form: str, *row: str, max_length: int) -> dict[str, Any]:
    """A row's ids without padding, what pads them, and the other outputs."""
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    pad_token_id = tokenizer.token_to_id(specials(form)[2])
    model = started(tokenizer_json_of(form), max_length=max_length, pad_token_id=pad_token_id)
    inputs = text_inputs(*([text] for text in row))
    values = model.execute([triton.Request(inputs, OUTPUTS)])[0].values()
    length = int(values["padded_attention_mask"].sum())
    ids = values["padded_input_ids"][0]
    assert set(ids[length:].tolist()) <= {pad_token_id}
    return {"ids": ids[:length].tolist(), "types": values["padded_token_type_ids"][0].tolist(), **values}


PIECES = st.sampled_from(
    [
        "a",
        "film ",
        "didn't... ",
        "j" * 90,
        "e\u0301",
        "日本 ",
        " ",
        "  ",
        "\u3000",
        "\t",
        "\0",
        ".",
        "</s>",
        " <s> ",
        "😀 ",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(FORMS)),
    st.lists(PIECES, min_size=1, max_size=10),
    st.integers(1, 60),
    st.text(max_size=5),
    st.booleans(),
)
@example("roberta", ["film "], 100, "", True)
@example("xlm_roberta", [" ", "a"], 400, "", False)
def test_cutting_a_long_text_changes_nothing(
    started: Callable[..., Any], kind: str, pieces: list[str], times: int, end: str, pair: bool
) -> None:
    cutting, whole = (started(tokenizer_json_of(kind), max_length=16).encoder for _ in range(2))
    whole.enough_tokens = None
    text = "a" + "".join(pieces) * times + end
    read = [one.read(text.encode(), "text 0") for one in (cutting, whole)]
    rows = [(text, "a film") if pair else text for text in read]
    (found,), (expected,) = cutting.encode(rows[:1]), whole.encode(rows[1:])
    assert found.ids == expected.ids
    assert bool(found.overflowing) == bool(expected.overflowing)
    assert token_places(found, read[0]) == token_places(expected, read[1])


def test_the_end_of_a_long_text_is_not_encoded_in_any_form(started: Callable[..., Any], form: str) -> None:
    encoder = started(tokenizer_json_of(form), max_length=16).encoder
    assert len(encoder.beginning("the film " * 7000)) < 8000


def test_texts_are_whole_where_a_tokenizer_may_look_beyond_a_blank(started: Callable[..., Any]) -> None:
    text = "the film " * 7000
    for part, other in (
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "m t"}, "content": "mt"}),
    ):
        changed = json.loads(tokenizer_json_of("roberta")) | {part: other}
        assert started(json.dumps(changed), max_length=16).encoder.beginning(text) == text


def test_padding_is_the_familys_own(started: Callable[..., Any], triton: ModuleType, form: str) -> None:
    values = encode(started, triton, form, "the film", max_length=24)
    expected = 1 if specials(form)[2] == "<pad>" else 0
    assert values["padded_input_ids"][0, -1] == expected
    assert values["padded_attention_mask"][0, -1] == 0


@pytest.mark.parametrize("max_length", [64, 12, 9])
def test_a_pair_has_the_familys_separators_and_is_cut_as_transformers_cuts_it(
    started: Callable[..., Any], triton: ModuleType, form: str, max_length: int
) -> None:
    """The special tokens of the pair count, and stay whole. The longer text is cut first."""
    from transformers import PreTrainedTokenizerFast

    row = ("the film was very good, and the music too", "play songs")
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer)(
        *row, truncation="longest_first", max_length=max_length
    )
    values = encode(started, triton, form, *row, max_length=max_length)
    assert values["ids"] == theirs["input_ids"]
    assert values["truncated"].item() == (max_length < 64)
    start, end, _ = specials(form)
    separators = 1 if start == "[CLS]" else 2
    assert [values["ids"][0], values["ids"][-1]] == [tokenizer.token_to_id(start), tokenizer.token_to_id(end)]
    assert values["ids"].count(tokenizer.token_to_id(end)) == separators + 1
    two_types = form in ("bert", "deberta_v3")
    assert set(values["types"]) == ({0, 1} if two_types else {0})


def test_a_special_token_written_in_a_text_is_that_token(
    started: Callable[..., Any], tokenized: Callable[..., Any], triton: ModuleType, form: str
) -> None:
    """As in transformers, unless told otherwise. Its characters are words of the text nevertheless."""
    from transformers import PreTrainedTokenizerFast

    end = specials(form)[1]
    text = f"a {end} film"
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    ids = encode(started, triton, form, text, max_length=24)["ids"]
    assert ids == PreTrainedTokenizerFast(tokenizer_object=tokenizer)(text)["input_ids"]
    assert ids.count(tokenizer.token_to_id(end)) == 2
    (row,) = tokenized(tokenizer_json_of(form), text)
    marks = {"</s>": ["<", "/", "s", ">"], "[SEP]": ["[", "SEP", "]"]}[end]
    assert [word for word, _, _ in words_read(row)] == ["a", *marks, "film"]


def test_offsets_are_those_of_transformers_without_the_blanks(form: str) -> None:
    from transformers import PreTrainedTokenizerFast

    text = "The film, didn't  Beyoncé\tplay 日本語?"
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer)(text, return_offsets_mapping=True)["offset_mapping"]
    (ours,) = token_offsets(tokenizer, [text], 64)
    assert len(ours) == len(theirs)
    for (start, end), (their_start, their_end) in zip(ours, theirs, strict=True):
        if start < end:
            assert text[their_start:their_end].strip() == text[start:end]
        else:
            blank = not text[their_start:their_end].strip()
            assert blank or (their_start, their_end) == (0, 1), "the blank that the tokenizer puts in front"
