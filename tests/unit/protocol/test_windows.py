"""How a long text is taken apart into windows of whole words."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer

from onetrunk.protocol.words import is_readable, windows_of, words_of
from tests.fixtures.tokenizers import FORMS, tokenizer_json_of

MOST = 10_000
WORDS = [
    "the",
    "film",
    "didn't",
    "naïve",
    "cafe\u0301",
    "日本語",
    "テキスト",
    "😀😀",
    "\u0301",
    ".",
    "x" * 150,
    "\u200b",
]
TEXTS = st.text(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=60).flatmap(
    lambda words: st.sampled_from([" ".join(words), "   ".join(words), "".join(words), (" " * 90).join(words)])
)


def encoder(form: str, tokens: int) -> Callable[[str], Encoding]:
    tokenizer = Tokenizer.from_str(tokenizer_json_of(form))
    tokenizer.enable_truncation(tokens + 3)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


ENCODERS = {(form, tokens): encoder(form, tokens) for form in FORMS for tokens in (3, 8, 31)}


@pytest.mark.parametrize("form", FORMS)
@given(text=TEXTS, tokens=st.sampled_from([3, 8, 31]), overlap=st.sampled_from([0.0, 0.25, 0.5]))
@example(text="a" + "\u0301" * 60, tokens=8, overlap=0.25)
@example(text=" " * 300 + "film " * 40 + " " * 300, tokens=8, overlap=0.5)
@settings(max_examples=40, deadline=None)
def test_windows_fit_and_cover_every_word(form: str, text: str, tokens: int, overlap: float) -> None:
    encode = ENCODERS[form, tokens]
    windows = windows_of(text, encode, tokens=tokens, overlap=overlap, most=MOST)
    words = words_of(text)
    assert bool(windows) == bool(words)
    for (start, end), (next_start, next_end) in pairwise(windows):
        assert start < next_start
        assert end < next_end
        assert not is_readable(text[end:next_start])
    assert not windows or not is_readable(text[: windows[0][0]])
    assert not windows or not is_readable(text[windows[-1][1] :])
    starts, ends = {word[0] for word in words}, {word[1] for word in words}
    for at, (start, end) in enumerate(windows):
        assert is_readable(text[start:end])
        encoded = encode(text[start:end])
        inside = [word for word in words if word[0] < end and word[1] > start]
        # A letter of many bytes may be more tokens than there is room for.
        assert len(encoded) <= tokens or len(text[start:end]) == 1 or start == 0
        if len(inside) > 1:  # else it may be a part of a word that is longer than a window
            assert at == 0 or start in starts or windows[at - 1][1] not in ends
            assert end in ends


@given(words=st.lists(st.sampled_from(["the", "film", "didn't", "日本", "naïve"]), min_size=1, max_size=120))
@settings(max_examples=50, deadline=None)
def test_the_overlap_is_as_large_as_asked_and_not_larger(words: list[str]) -> None:
    text, encode = " ".join(words), ENCODERS["bert", 31]
    windows = windows_of(text, encode, tokens=31, overlap=0.25, most=MOST)
    for (_, end), (start, _) in pairwise(windows):
        assert len(encode(text[start:end])) <= 7
        assert start < end


def test_no_more_windows_than_allowed_are_looked_for() -> None:
    asked = []

    def encode(text: str) -> Encoding:
        asked.append(text)
        return ENCODERS["bert", 31](text)

    text = "the film was very good " * 20_000
    windows = windows_of(text, encode, tokens=31, overlap=0.25, most=5)
    assert len(windows) == 5
    assert windows[-1][1] < len(text)
    assert sum(map(len, asked)) < 2_000  # and so the rest of the text costs nothing


def test_a_word_that_is_longer_than_a_window_is_taken_apart_without_overlap() -> None:
    encode, text = ENCODERS["roberta", 31], "the film " + "😀" * 100 + " was good"
    windows = windows_of(text, encode, tokens=31, overlap=0.5, most=MOST)
    parts = [text[start:end] for start, end in windows]
    assert parts[0].startswith("the film")
    inside = [part for part in parts if set(part) == {"😀"}]
    assert sum(map(len, inside)) >= 90
    assert parts[-1].endswith("was good")


HUGE = {"letters": "a" * 60_000, "emoji": "😀" * 60_000, "form feeds": "a\x0c" * 30_000}
HUGE |= {"a word among words": "the film " * 20 + "ab" * 30_000, "blanks": "a" + " " * 60_000 + "b"}


@pytest.mark.parametrize("form", ["modernbert", "roberta", "xlm_roberta"])
@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_window_reads_little_of_a_word_or_of_blanks_that_it_has_no_room_for(form: str, text: str) -> None:
    read = []

    def encode(part: str) -> Encoding:
        read.append(len(part))
        return ENCODERS[form, 31](part)

    windows = windows_of(text, encode, tokens=31, overlap=0.25, most=20)
    if len(windows) > 2:  # blanks are a token in SentencePiece's form, and so the text is read in one window
        assert sum(read) < len(windows) * 6_000
    else:
        assert sum(read) < 4 * len(text)
    for start, end in windows:
        assert len(ENCODERS[form, 31](text[start:end])) <= 31


def test_a_long_word_that_is_one_token_is_not_taken_apart() -> None:
    text = "the film " + "ab" * 30_000 + " was good"
    assert windows_of(text, ENCODERS["bert", 31], tokens=31, overlap=0.25, most=MOST) == [(0, len(text))]
