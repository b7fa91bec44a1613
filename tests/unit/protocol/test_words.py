"""The rule by which every text is split into words, and how tokens are placed on them."""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from onetrunk.protocol.words import is_readable, token_places, words_of
from tests.fixtures.tokenizers import FORMS, tokenizer_json_of

ACCENT, JOINER, VARIATION = "\u0301", "\u200d", "\ufe0f"
FAMILY = f"\U0001f468{JOINER}\U0001f469{JOINER}\U0001f467"
TOKENIZERS = {form: Tokenizer.from_str(tokenizer_json_of(form)) for form in FORMS}
TEXTS = st.text(max_size=40) | st.text(st.sampled_from("aB1 .,'\t\n\r\x0b\x00\ufffd日é\u0301\u200d\ufe0f😀$\u00a0_-"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello, world", ["Hello", ",", "world"]),
        ("  two\t\tblanks\r\n   three ", ["two", "blanks", "three"]),
        ("don't they'll (5.50$)", ["don", "'", "t", "they", "'", "ll", "(", "5", ".", "50", "$", ")"]),
        ("caf\u00e9 cafe\u0301 cafe\u0323\u0301.", ["caf\u00e9", "cafe\u0301", "cafe\u0323\u0301", "."]),
        ("日本語のテキスト", ["日", "本", "語", "のテキスト"]),
        ("한국어 שלום नमस्ते", ["한국어", "שלום", "नमस्ते"]),
        (
            f"{FAMILY}! 👍🏽 ❤{VARIATION}a 1{VARIATION}\u20e3",
            [FAMILY, "!", "👍🏽", f"❤{VARIATION}a", f"1{VARIATION}\u20e3"],
        ),
        ("“so—called” ¿qué? a_b a±b", ["“", "so", "—", "called", "”", "¿", "qué", "?", "a", "_", "b", "a±b"]),
        ("1≠2", ["1", "≠", "2"]),  # an equals sign with a stroke
        ("a\x00b\x0cc\u00ad \u200b", ["a\x00b\x0cc\u00ad"]),
        (f"{ACCENT}a {VARIATION} .{ACCENT} \ufffd", ["a", f".{ACCENT}"]),
    ],
)
def test_a_text_has_these_words(text: str, expected: list[str]) -> None:
    words = words_of(text)
    assert [text[start:end] for start, end in words] == expected
    assert is_readable(text) == bool(expected)


@pytest.mark.parametrize(
    "text", ["", "   ", "\t\r\n", "\u3000\u00a0", "\x00", "\x1f\x7f", "\ufeff\u200b", "\ufffd", ACCENT, VARIATION * 2]
)
def test_without_a_word_there_is_nothing_to_read(text: str) -> None:
    assert not is_readable(text)
    assert is_readable(f"{text}.")


@given(TEXTS)
def test_words_are_in_order_and_leave_nothing_but_blanks_and_marks(text: str) -> None:
    words = words_of(text)
    assert all(start < end for start, end in words)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(words))
    inside = {at for start, end in words for at in range(start, end)}
    for at, character in enumerate(text):
        category = unicodedata.category(character)
        if category[0] == "Z" or character in "\t\n\r":
            assert at not in inside
        elif category not in ("Mn", "Cc", "Cf", "Co") and character != "\ufffd":
            assert at in inside
        elif at in inside:
            assert at - 1 in inside, "such a character belongs to the word that it follows"
    assert is_readable(text) == bool(words)


@given(TEXTS, st.integers(0, 50))
def test_the_words_of_a_beginning_are_those_of_the_whole_text(text: str, until: int) -> None:
    assert words_of(text, until) == [word for word in words_of(text) if word[0] < until]


# What the tokenizers' tables of characters, which are older than Python's, know as well.
KNOWN = st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cn", "Mn", "P")) | st.sampled_from(
    "\u0301\u0323\u094d\ufe0f.,;'\"!?-_()[]{}#@%&*/\\«»“”‘’—…、。「」¿¡"
)


@given(st.text(KNOWN, max_size=30))
def test_the_rule_is_that_of_berts_tokenizer(text: str) -> None:
    """Its words, told by where they begin, are those whose characters its normaliser keeps."""
    normalizer, splitter = (
        normalizers.BertNormalizer(lowercase=False, strip_accents=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    bert = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
    kept = [normalizer.normalize_str(text[start:end]).strip() for start, end in words_of(text)]
    assert kept == bert


@dataclass(frozen=True)
class Encoded:
    tokens: list[str]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]


def places(text: str, *pieces: tuple[str, int, int]) -> list[tuple[int, int, int] | None]:
    tokens, starts, ends = zip(*pieces, strict=True)
    return token_places(Encoded(list(tokens), list(zip(starts, ends, strict=True)), [0] * len(tokens)), text)


def test_the_blank_before_a_word_is_in_none() -> None:
    assert places("a  b", ("a", 0, 1), ("Ġ", 1, 2), ("Ġb", 2, 4)) == [(0, 0, 1), None, (1, 3, 4)]
    assert places("a b", ("▁", 0, 1), ("a", 0, 1), ("▁b", 1, 3)) == [None, (0, 0, 1), (1, 2, 3)]


def test_pieces_that_share_a_character_are_all_in_its_word() -> None:
    assert places("é😀 b", ("Ã", 0, 1), ("©", 0, 1), ("ðŁ", 1, 2), ("ĺĢ", 1, 2), ("Ġb", 2, 4)) == [
        *[(0, 0, 1)] * 2, *[(0, 1, 2)] * 2, (1, 3, 4)
    ]  # fmt: skip


def test_a_token_of_several_words_ends_in_the_last_of_them() -> None:
    assert places("don't... a", ("don", 0, 3), ("'t...", 3, 8), ("Ġa", 8, 10)) == [(0, 0, 3), (1, 3, 8), (6, 9, 10)]
    assert places("日本語", ("▁日本", 0, 2), ("語", 2, 3)) == [(0, 0, 2), (2, 2, 3)]


def test_tokens_reach_over_what_the_tokenizer_drops() -> None:
    assert places(f"a{ACCENT}b{VARIATION} c", ("a", 0, 1), ("b", 2, 3), ("c", 5, 6)) == [
        (0, 0, 2),
        (0, 2, 4),
        (1, 5, 6),
    ]
    # The text was truncated inside its word.
    assert places("abcd e", ("ab", 0, 2)) == [(0, 0, 4)]


@settings(deadline=None)
@given(TEXTS)
@example("日本 é😀  x")
@example(f"... {FAMILY}don't\tyou're")
def test_every_word_has_its_tokens_in_every_form(text: str) -> None:
    """The tokens of a word cover all of it, unless the tokenizer drops the whole word."""
    words = words_of(text)
    for form, tokenizer in TOKENIZERS.items():
        tokens = token_places(tokenizer.encode(text), text)
        covered = [place for place in tokens if place is not None]
        assert covered == sorted(covered), form
        for word, start, end in covered:
            first = words[word]
            assert first[0] <= start < first[1]
            assert start < end
        inside = {at for _, start, end in covered for at in range(start, end)}
        for start, end in words:
            at = inside & set(range(start, end))
            assert at == set(range(start, end)) or (not at and form in ("xlm_roberta", "deberta_v3")), form


def test_special_tokens_and_second_texts_have_no_place() -> None:
    for form, tokenizer in TOKENIZERS.items():
        encoded = tokenizer.encode("good film", "bad film")
        placed = [place for place in token_places(encoded, "good film") if place is not None]
        second = [token for token, sequence in enumerate(encoded.sequence_ids) if sequence == 1]
        assert len(placed) <= second[0], form
        assert {word for word, _, _ in placed} == {0, 1}, form
