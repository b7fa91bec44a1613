"""The words of a text: one rule for every tokenizer, in training, in the server and in clients.

A text is split as BERT splits it before it looks for pieces, whatever the tokenizer of the trunk does:

- Words end at blanks: the white space of Unicode (categories Zs, Zl, Zp), tabs, line feeds and carriage returns.
- A punctuation mark is a word of its own (ASCII's, and category P of Unicode), and so is a Chinese character. A
  character is judged by the first one of its canonical decomposition.
- Marks without width (category Mn), control, format and private characters (Cc, Cf, Co) and U+FFFD begin no word. They
  belong to the word that they follow, or to none after a blank.
- All other characters, such as letters, digits, emoji and other symbols, form a word until one of the above ends it.

Tokens are placed on these words by their characters, and long texts are taken apart into windows of whole words. The
file needs nothing but Python: `build-repo` copies it into repositories, where the tokenizer model imports it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Word = tuple[int, int]
"""The first character of a word, and the character after its last."""

Place = tuple[int, int, int]
"""The index of a token's first word, the token's first character, and the character after its last."""

# The classes of characters. White space that BERT takes for control characters, such as form feeds, begins no word and
# ends none, but is not the last of one either.
_BLANK, _ALONE, _LETTER, _DROPPED, _SPACING_CONTROL = " awds"
_WORD = re.compile("ad*|w(?:[wds]*w)?d*")
_BLANKS = re.compile(r"[ \t\r\n]")
_MOST_CLASSES = 2**17
# Characters of a text, in which most often there is a word.
_BEGINNING = 64
WINDOWED_TEXTS = 4
"""The long texts of which a request asks for the windows: each may take the tokenizer a third of a second."""
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
# So many characters a token are read first where a window is looked for: English has four or five.
_CHARACTERS_A_TOKEN = 6
# A word that a window has no room for is read so far only: a text may be one word of a million characters, and each of
# its windows would read all the rest of it. The pieces of so long a word, or that it has none, are settled by then.
_CHARACTERS_OF_A_WORD = 1024
# What byte-level and SentencePiece tokenizers write for a blank, also for the one that they put in front of a text.
_BLANK_PIECES = ("Ġ", "▁")


class Encoded(Protocol):
    """A text, or a pair of texts, as the library ``tokenizers`` encodes it.

    Attributes:
        tokens: The piece of each token.
        offsets: The first character and the one after the last of each token.
        sequence_ids: 0 for tokens of the first text, 1 for the second, None for special tokens.
    """

    @property
    def tokens(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def offsets(self) -> Sequence[tuple[int, int]]: ...  # noqa: D102

    @property
    def sequence_ids(self) -> Sequence[int | None]: ...  # noqa: D102


def words_of(text: str, until: int | None = None) -> list[Word]:
    """Return the words of a text, in order.

    Args:
        text: The text.
        until: Only words that begin before this character are returned; None for all.
    """
    if until is None:
        return [word.span() for word in _WORD.finditer(text.translate(_CLASSES))]
    # The rest of a long text is not looked at; the last word that is returned is whole.
    blank = _BLANKS.search(text, until)
    read = text if blank is None else text[: blank.start()]
    return [word for word in words_of(read) if word[0] < until]


def is_readable(text: str) -> bool:
    """Return whether a text has a word. Without one, there is nothing that a model could read."""
    if any(_CLASSES[ord(character)] in (_ALONE, _LETTER) for character in text[:_BEGINNING]):
        return True
    classes = text[_BEGINNING:].translate(_CLASSES)  # which is quicker, character by character
    return _ALONE in classes or _LETTER in classes


def token_places(encoded: Encoded, text: str) -> list[Place | None]:
    """Place the tokens of the first text on its words.

    A token begins at the first character of a word that it covers: the blank in front of a word belongs to none. It
    ends where the next token begins or, if it is the last one of a word, with the word, so that the tokens of a word
    cover all of it: tokenizers drop characters, and a text may have been truncated inside a word. If a token covers
    several words, its end is in the last of them.

    Args:
        encoded: The encoded text, or pair of texts.
        text: The first text.

    Returns:
        The place of each token; None for special tokens, tokens of the second text, and tokens that are in no word,
        such as blanks.
    """
    offsets, pieces = encoded.offsets, encoded.tokens
    inside = [token for token, sequence in enumerate(encoded.sequence_ids) if sequence == 0]
    words = words_of(text, max((offsets[token][1] for token in inside), default=0))
    places: list[Place | None] = [None] * len(pieces)
    # From the last token to the first, since a token's end depends on where the next one begins.
    word, following = len(words) - 1, len(text)
    for token in reversed(inside if words else []):
        start, end = offsets[token]
        # The blank that a tokenizer puts in front of a text stands at the place of its first character.
        if start == end or (pieces[token] in _BLANK_PIECES and text[start:end] != pieces[token]):
            continue
        while word > 0 and words[word - 1][1] > start:
            word -= 1
        begin, limit = words[word]
        if limit <= start or end <= begin:
            continue
        if end > limit:
            limit = max(word_end for word_begin, word_end in words[word:] if word_begin < end)
        # Calls of min and max would take longer than the rest of the loop.
        start = begin if start < begin else start
        end = following if end < following else end
        places[token] = (word, start, limit if end > limit else end)
        following = start
    return places


def windows_of(
    text: str, encode: Callable[[str], Encoded], *, tokens: int, overlap: float, most: int
) -> list[tuple[int, int]]:
    """Take a text apart into overlapping windows, each of which the trunk reads whole as a text of its own.

    A window begins and ends with a word. Only a word that is longer than a window is itself taken apart. Windows are
    found one after the other, so that what a text costs depends on how many there are, and not on its length.

    Args:
        text: The text.
        encode: Encodes a part of the text without special tokens. It may leave out what follows ``tokens`` + 1 tokens.
        tokens: The most tokens of a window.
        overlap: The share of a window that the next one reads again, at most a half.
        most: The most windows.

    Returns:
        The first character of each window, and the one after its last. They cover every word, unless there are more
        than ``most`` of them. The first one begins with the text, unless it begins with more blanks than are read.
    """
    found: list[tuple[int, int]] = []
    start = 0
    while len(found) < most and (window := _window(text, start, encode, tokens, int(overlap * tokens))):
        # Before a very long word, the overlap alone may fill a window that reaches no further than the last one.
        start = window.start_without_overlap if found and window.end <= found[-1][1] else window.next_start
        if not found or window.end > found[-1][1]:
            found.append((window.start, window.end))
    return found


@dataclass(frozen=True)
class _Window:
    """A window, and where the next one begins. All are characters of the text."""

    start: int
    end: int
    next_start: int
    start_without_overlap: int


def _window(text: str, start: int, encode: Callable[[str], Encoded], tokens: int, overlap: int) -> _Window | None:
    """Return the window that begins at a character, or at the next word if it cannot begin there; None if none does."""
    size = _CHARACTERS_A_TOKEN * (tokens + 1)
    while True:
        part = text[start : start + size]
        whole = start + size >= len(text)
        words = words_of(part)
        if words and start and words[0][0]:
            return _window(text, start + words[0][0], encode, tokens, overlap)
        if not (words or whole):
            size *= 2
            continue
        encoded = encode(part)
        places = token_places(encoded, part)
        beyond = next((place for place in places[tokens:] if place is not None), None)
        last = next((place for place in reversed(places[:tokens]) if place is not None), None)
        # The first word that is not in the window, or not all of it.
        cut = beyond[0] if beyond is not None else last[0] + 1 if last is not None else 0
        # What ends with the part may go on behind it, unless the window is full and a blank follows.
        too_long = beyond is not None and len(part) - words[cut][0] >= _CHARACTERS_OF_A_WORD
        only_blanks = beyond is None and len(places) > tokens and _BLANKS.search(part, words[-1][1] if words else 0)
        if whole or cut + 1 < len(words) or too_long or only_blanks:
            break
        size *= 2
    if whole and len(places) <= tokens and last is not None:
        return _Window(start, start + words[-1][1], len(text), len(text))
    # Without what follows, some tokenizers take the last word apart in another way.
    while cut and len((encoded := encode(part[: words[cut - 1][1]])).tokens) > tokens:
        cut -= 1
    if cut == 0 and words and words[0][0]:  # behind more blanks than a window has room for
        return _window(text, start + words[0][0], encode, tokens, overlap)
    if last is None:
        return None
    if cut == 0:
        end = start + _beginning(part, encode, tokens, beyond[1] if beyond is not None else words[0][1])
        return _Window(start, end, end, end)
    end = words[cut - 1][1]
    following = words[cut][0] if cut < len(words) else end
    places = token_places(encoded, part[:end])
    again = len(places) - min(overlap, len(places) // 2)
    first = next((one[1] for one in places[again:] if one and one[0] and one[1] == words[one[0]][0]), following)
    return _Window(start, start + end, start + first, start + following)


def _beginning(word: str, encode: Callable[[str], Encoded], tokens: int, most: int) -> int:
    """Return how many characters of a word a window has room for: at least one, and at most so many."""
    end = max(most, 1)
    while end > 1 and len(encode(word[:end]).tokens) > tokens:
        end -= 1
    return end


class _Classes(dict[int, str]):
    """The class of each character, by its number. It is found out when the character is first seen."""

    def __missing__(self, code: int) -> str:
        found = _class_of(chr(code))
        # Of the rare characters of the other planes, a hostile sender could send a million.
        if code <= 0xFFFF or len(self) < _MOST_CLASSES:
            self[code] = found
        return found


def _class_of(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if category[0] == "Z" or character in "\t\n\r":
        return _BLANK
    if category in ("Mn", "Cc", "Cf", "Co") or character == "\ufffd":
        return _SPACING_CONTROL if character.isspace() else _DROPPED
    if any(low <= code <= high for low, high in _CHINESE):
        return _ALONE
    base = unicodedata.normalize("NFD", character)[0]
    is_ascii_mark = base.isascii() and not base.isalnum()
    return _ALONE if is_ascii_mark or unicodedata.category(base)[0] == "P" else _LETTER


_CLASSES = _Classes()
