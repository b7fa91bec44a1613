"""Words and spans in a text: what the tokenizer model says, what the client makes of it, what the metric counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from onetrunk.client.tagging import MOST_UNREAD_WORDS
from onetrunk.tasks.examples import token_offsets
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import word_spans
from tests.fixtures.tokenizers import FORMS, tokenizer_json_of
from tests.fixtures.tokenizers import TAGGING_TYPES as TYPES
from tests.fixtures.tokenizers import read_tags as read
from tests.fixtures.tokenizers import words_read as words

MAX_LENGTH = 12
KEPT = MAX_LENGTH - 2  # without [CLS] and [SEP]
ACCENT, DOT, HEART, JOINER = "\u0301", "\u0323", "\u2764\ufe0f", "\u200d"


@pytest.fixture
def ask(tokenized: Callable[..., Any], tiny_trunk_folder: Path) -> Callable[..., Any]:
    """Texts to rows as the client has them."""
    return partial(tokenized, (tiny_trunk_folder / "tokenizer.json").read_text(), max_length=MAX_LENGTH)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"cafe{ACCENT} noir", [(f"cafe{ACCENT}", 0, 5), ("noir", 6, 10)]),
        (f"cafe{ACCENT}{DOT}, a", [(f"cafe{ACCENT}{DOT}", 0, 6), (",", 6, 7), ("a", 8, 9)]),
        (f"fi{ACCENT}lm fi{ACCENT}lx", [(f"fi{ACCENT}lm", 0, 5), (f"fi{ACCENT}lx", 6, 11)]),
        (f"I {HEART} you", [("I", 0, 1), (HEART, 2, 4), ("you", 5, 8)]),
        # The tokenizer drops its vowel signs and its virama.
        ("\u0928\u092e\u0938\u094d\u0924\u0947 a", [("\u0928\u092e\u0938\u094d\u0924\u0947", 0, 6), ("a", 7, 8)]),
        ("a\u00ad b\0 c\ufffd d", [("a\u00ad", 0, 2), ("b\0", 3, 5), ("c\ufffd", 6, 8), ("d", 9, 10)]),
        (f"\U0001f468{JOINER}\U0001f469 a{JOINER}", [(f"\U0001f468{JOINER}\U0001f469", 0, 3), (f"a{JOINER}", 4, 6)]),
        # What has no word before it belongs to none.
        (f" {ACCENT} a \u200b", [("a", 3, 4)]),
        ("\t a\r\nb\u00a0c \u3000d", [("a", 2, 3), ("b", 5, 6), ("c", 7, 8), ("d", 10, 11)]),
        ("\U0001f1e9\U0001f1ea \ufb01lm", [("\U0001f1e9\U0001f1ea", 0, 2), ("\ufb01lm", 3, 6)]),
        ("don't", [("don", 0, 3), ("'", 3, 4), ("t", 4, 5)]),
    ],
)
def test_a_word_has_the_marks_that_the_tokenizer_drops(
    ask: Callable[..., Any], text: str, expected: list[tuple[str, int, int]]
) -> None:
    assert words(ask(text)[0]) == expected


def test_every_piece_goes_on_to_the_next(ask: Callable[..., Any]) -> None:
    row = ask(f"fi{ACCENT}lx{DOT} a", "a")[0]
    assert row.words.tolist() == [
        [-1, -1, -1], [0, 0, 1], [0, 1, 3], [0, 3, 4], [0, 4, 6], [1, 7, 8], *[[-1, -1, -1]] * 6
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "read_last", "unread"),
    [
        # The ninth word has two of its four pieces read.
        ("a " * 8 + "zyxw film", ("zyxw", 16, 20), [("film", 21, 25)]),
        ("a " * 8 + f"zyxw{ACCENT}-b film", (f"zyxw{ACCENT}", 16, 21), [("-b", 21, 23), ("film", 24, 28)]),
        # The tenth word is read, but for what the tokenizer drops; a lone accent is no word.
        ("a " * 9 + f"e{ACCENT} film, b", (f"e{ACCENT}", 18, 20), [("film,", 21, 26), ("b", 27, 28)]),
        ("a " * 9 + "don't film", ("don", 18, 21), [("'t", 21, 23), ("film", 24, 28)]),
        ("a " * 9 + "z" * 90 + " b", ("z" * 90, 18, 108), [("b", 109, 110)]),
    ],
)
def test_a_word_that_was_cut_in_its_middle_is_there_once_and_whole(
    ask: Callable[..., Any], text: str, read_last: tuple[str, int, int], unread: list[tuple[str, int, int]]
) -> None:
    row = ask(text)[0]
    assert row.truncated
    said = read(row, [0] * KEPT + [1, 0])  # B-artist at the last piece that was read
    last = next(at for at, word in enumerate(said.words) if word.tag is None) - 1
    assert [(word.text, word.start, word.end, word.tag) for word in said.words[last:]] == [
        (*read_last, "B-artist"),
        *((*word, None) for word in unread),
    ]
    assert [(span.text, span.start, span.end) for span in said.spans] == [read_last]


@pytest.mark.hostile
def test_a_text_of_many_words_has_an_answer_of_few(ask: Callable[..., Any]) -> None:
    said = read(ask("a " * 30_000)[0])
    assert [word.tag for word in said.words[-MOST_UNREAD_WORDS - 1 :]] == ["O", *[None] * MOST_UNREAD_WORDS]
    assert len(said.record(None)["words"]) == len(said.words) < 2 * MOST_UNREAD_WORDS


def test_a_second_text_changes_no_word_of_the_first(ask: Callable[..., Any]) -> None:
    """Where the second one is cut, what overflows has the first one again."""
    (row,) = ask(f"the cafe{ACCENT}", pair="b " * 20)
    assert row.truncated
    assert words(row)[:2] == [("the", 0, 3), (f"cafe{ACCENT}", 4, 9)]


def test_a_span_that_begins_in_the_middle_of_another_ones_word_has_the_words_after_it(ask: Callable[..., Any]) -> None:
    """`zy` is two pieces; the album begins at the second, the third album has no word of its own."""
    (row,) = ask("zy film zy a")
    tags = [0, 1, 3, 4, 3, 1, 0, 0]
    said = read(row, [*tags, 0, 0, 0, 0])
    assert [(span.type, span.text, span.start, span.end) for span in said.spans] == [
        ("artist", "zy", 0, 2),
        ("album", "film", 3, 7),
        ("album", "zy", 8, 10),
    ]
    assert [word.tag for word in said.words] == ["B-artist", "B-album", "B-album", "O"]
    targets = np.stack([np.zeros(8, dtype=np.int64), [-1, 0, 0, 1, 2, 2, 3, -1]], axis=-1)
    ((answered, _),) = word_spans(np.array([tags]), targets[None])
    assert answered == {(0, 0, "0"), (1, 1, "1"), (2, 2, "1")}


@pytest.mark.parametrize("form", ["tiny trunk", *FORMS])
def test_client_and_metric_have_the_same_spans(
    tokenized: Callable[..., Any], tiny_trunk_folder: Path, form: str
) -> None:
    """Of random rows of tags, on texts whose words by blanks are the text's; some of them are cut."""
    tokenizer_json = tokenizer_json_of(form) if form in FORMS else (tiny_trunk_folder / "tokenizer.json").read_text()
    draw = np.random.default_rng(0)
    kind, space = get_kind("tagging"), SimpleNamespace(labels=TYPES, range=None, options={}, fitted={})
    begin, more = (
        ["film", "a", "zy", "\u2764", "\u0928"],
        [*f"{ACCENT}{DOT}{JOINER}\ufe0f\0\ufffd\u094d", *"abxyz", "film"],
    )

    def word() -> str:
        return "".join([draw.choice(begin), *draw.choice(more, draw.integers(4))])

    rounds = 100 if form == "tiny trunk" else 12
    cut = spans_in_all = 0
    for _ in range(rounds):
        blanks = [draw.choice([" ", " ", "\t", "\r\n", "\u00a0", " \u3000"], draw.integers(1, 9)) for _ in range(30)]
        texts = ["".join(f"{word()}{blank}" for blank in some) for some in blanks]
        rows = tokenized(tokenizer_json, *texts, max_length=MAX_LENGTH)
        encoded = [kind.codec.encode(["O"] * len(text.split()), space, text) for text in texts]
        targets = kind.codec.targets(
            encoded, space, token_offsets(Tokenizer.from_str(tokenizer_json), texts, MAX_LENGTH)
        )
        tags = draw.choice(5, (30, len(rows[0].words)), p=[0.3, 0.1, 0.25, 0.1, 0.25])
        for row, row_tags, data, (answered, _) in zip(rows, tags, encoded, word_spans(tags, targets), strict=True):
            said = read(row, row_tags)
            assert [(one.start, one.end) for one in said.words] == [one[:2] for one in data], row
            spans = {(span.start, span.end, span.type) for span in said.spans}
            assert spans == {(data[first][0], data[last][1], TYPES[int(one)]) for first, last, one in answered}, row
            cut, spans_in_all = cut + row.truncated, spans_in_all + len(spans)
    assert rounds < cut < 30 * rounds
    assert spans_in_all > 30 * rounds
