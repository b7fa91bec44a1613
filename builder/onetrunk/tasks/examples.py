"""A task's labelled texts, checked when they are read, and their labels as targets."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.words import token_places, windows_of
from onetrunk.tasks.formats import read_hub, read_records, sha256_of
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import Kind, KindConfig, Offsets
from onetrunk.tasks.records import BrokenLine, Reading, Record, Split
from onetrunk.tasks.rows import Text, check_rows
from onetrunk.tasks.task import Task
from onetrunk.tasks.task_file import locate

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Texts: TypeAlias = Sequence[str] | Sequence[tuple[str, str]]
# Its time of change in nanoseconds, and its size in bytes.
FileVersion: TypeAlias = tuple[int, int]
_TOKENIZER_BATCH = 2048
# Of the labels that no row has, this many are named.
_SHOWN = 10
# A text of more words is the same text with other signs between them.
_MANY_WORDS = 5


@dataclass(frozen=True)
class Examples:
    """The rows of one split.

    Attributes:
        source: The file or hub address, for messages.
        texts: One text for each row, or both texts of a pair.
        targets: The labels, encoded by the kind's ``LabelCodec``.
        sha256: The hash of the file's bytes; for a hub's data set, of its rows.
        left_out: The number of rows that could not be used.
        notes: What a user should know about the rows, such as how many were left out.
    """

    source: str
    texts: tuple[str, ...] | tuple[tuple[str, str], ...]
    targets: tuple[Any, ...]
    sha256: str
    left_out: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def read_examples(task: Task, split: Split, *, data_root: Path | None = None, skip_bad_rows: bool = False) -> Examples:
    """Read and check a split.

    Args:
        task: The task.
        split: ``train``, ``dev``, or ``test`` if the task has test data.
        data_root: The folder in which relative files are looked for first.
        skip_bad_rows: Leave out rows that cannot be used, and note how many, instead of refusing the file. Rows that a
            quotation mark has taken in are left out only if they are few.

    Raises:
        UserError: The data cannot be found or read, no row is left, or rows cannot be used; the message says how many,
            why, and where.
    """
    place = locate(task, split, data_root)
    version = _version_of(place)
    # A command that checks the data before it loads torch reads them twice.
    if version is None:
        return _read(task, split, place, skip_bad_rows)
    return _read_once(task, split, place, skip_bad_rows, version)


def file_version(task: Task, split: Split, data_root: Path | None = None) -> FileVersion | None:
    """Return what changes when a split's file is written again; None where that cannot be told."""
    try:
        return _version_of(locate(task, split, data_root))
    except (OSError, UserError):  # whoever reads the data says so
        return None


def _version_of(place: Path | str) -> FileVersion | None:
    # A folder's own time tells nothing.
    if not isinstance(place, Path) or not place.is_file():
        return None
    found = place.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=3)  # all splits of one task
def _read_once(task: Task, split: Split, place: Path | str, skip_bad_rows: bool, version: FileVersion) -> Examples:
    return _read(task, split, place, skip_bad_rows)


def _read(task: Task, split: Split, place: Path | str, skip_bad_rows: bool) -> Examples:
    reading = _reading(task, split)
    records: Iterable[Record | BrokenLine]
    if isinstance(place, Path):
        records, sha256 = read_records(place, reading), sha256_of(place, reading)
    else:
        found = list(read_hub(place, reading.split))
        records = found
        sha256 = hashlib.sha256(json.dumps([row.values for row in found], default=str).encode()).hexdigest()
    if task.how_read:
        # The same file is other data if it is read in another way.
        sha256 = hashlib.sha256(json.dumps([sha256, split, task.how_read], sort_keys=True).encode()).hexdigest()
    rows = check_rows(task, records)
    notes = [f"{place}: {note}" for note in (*reading.notes, *rows.notes)]
    if rows.no_column is not None and not rows.targets:
        raise UserError(f"{place}: {rows.no_column}")
    if rows.errors.total:
        hints = [*rows.hints, reading.encoding_hint()]
        notes.append(rows.errors.summary(place, used=len(rows.targets), hints=hints, skip_bad_rows=skip_bad_rows))
    texts, targets = rows.texts, rows.targets
    if not targets:
        raise UserError(f"{place}: it has no rows that can be used")
    left_out = rows.errors.total
    if task.dev_share is not None and split != "test":
        texts, targets = _part(task, split, texts, targets, place)
        # They concern the whole file, which is read for both splits.
        notes, left_out = (notes, left_out) if split == "train" else ([], 0)
    if unused := get_kind(task.kind).codec.unused_labels(targets, task):
        noun = "label" if len(unused) == 1 else "labels"
        more = f", and {counted(len(unused) - _SHOWN, 'other', 'others')}" if len(unused) > _SHOWN else ""
        notes.append(f"no row of the {split} data has the {noun} {', '.join(map(repr, unused[:_SHOWN]))}{more}")
    return Examples(str(place), tuple(texts), tuple(targets), sha256, left_out, tuple(notes))  # type: ignore[arg-type]


def _reading(task: Task, split: Split) -> Reading:
    return Reading(
        encoding=task.encoding,
        delimiter=task.delimiter,
        quotes=task.quotes,
        # A share for dev is one of the train data.
        split="train" if split == "dev" and task.dev_share is not None else split,
        text=(task.text_field, task.text_pair_field) if task.form == "pair" else (task.text_field,),
        label=task.label_field,
    )


def _part(
    task: Task, split: Split, texts: list[Text], targets: list[Any], place: Path | str
) -> tuple[list[Text], list[Any]]:
    """Return the rows of a split of which the other is the rest: which one a text is in depends on the text alone."""
    share = task.dev_share or 0.0
    chosen = [row for row, text in enumerate(texts) if (split_number(_either_way(text)) < share) == (split == "dev")]
    if not chosen:
        raise UserError(f"{place}: dev = {share:g} leaves no rows for {split}: give more rows, or another share")
    return [texts[row] for row in chosen], [targets[row] for row in chosen]


def split_number(text: str | tuple[str, ...], salt: str = "") -> float:
    """Return a number from 0 to 1 for a text, equal for texts that differ only in white space or in case."""
    digest = hashlib.sha256((salt + "\0".join(normalized(text))).encode()).digest()
    return float(int.from_bytes(digest[:8], "big") / 2**64)


def part_of(texts: Texts, share: float) -> NDArray[np.int64]:
    """Return the rows of a share of texts, which the hash of a text decides: a smaller share is part of a larger one.

    Args:
        texts: The texts.
        share: The share, above 0. At least one row is returned.

    Returns:
        *Shape:* (chosen,)
    """
    # Not the number that decides between train and dev: all train texts have a high one.
    draws = np.array([split_number(text, "part") for text in texts])
    chosen = np.flatnonzero(draws < share)
    return chosen if len(chosen) else draws.argmin(keepdims=True)


def overlap_notes(seen: Examples, rows: Examples, split: Split = "dev", among: Split = "train") -> tuple[str, ...]:
    """Return a note on how many texts or pairs are also among others, which a head has learned from, or was chosen by.

    Texts that differ only in white space or in case count as the same, and so do pairs of which the other text comes
    first.

    Args:
        seen: The others.
        rows: The texts.
        split: Which split these are.
        among: Which split the others are.

    Returns:
        No note, if there are none.
    """
    known = {_either_way(text) for text in seen.texts}
    count = sum(_either_way(text) in known for text in rows.texts)
    are = "is" if count == 1 else "are"
    return (f"{count:,} of {len(rows):,} {split} texts {are} also in {among}",) if count else ()


def normalized(text: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return a text, or both of a pair, without what does not make it another text: case and white space."""
    parts = (text,) if isinstance(text, str) else text
    return tuple(" ".join(part.casefold().split()) for part in parts)


def _either_way(text: Text) -> tuple[str, ...]:
    """Return a text as normalized; of a pair, whichever comes first."""
    return tuple(sorted(normalized(text)))


def rows_elsewhere(texts: Texts, elsewhere: Iterable[Texts]) -> NDArray[np.bool_]:
    """Return which texts are also among others; of a pair, whichever comes first.

    Corpora that share sentences differ in blanks, quotation marks and dashes, so that long texts are compared by their
    letters, digits and pictures alone. In a text of a few words a sign may be what it says, such as ``great :(``: these
    are compared by all but white space.

    Args:
        texts: The texts.
        elsewhere: The others.

    Returns:
        *Shape:* (texts,)
    """
    known = {_what_counts(text) for other in elsewhere for text in other}
    return np.array([_what_counts(text) in known for text in texts], dtype=np.bool_)


def _what_counts(text: Text) -> tuple[str, ...]:
    return tuple(
        sorted(_letters(part) if part.count(" ") >= _MANY_WORDS else part.replace(" ", "") for part in normalized(text))
    )


def _letters(text: str) -> str:
    # Combining marks are the vowels of many scripts, and "other symbols" are mostly emoji.
    return "".join(sign for sign in text if (kind := unicodedata.category(sign))[0] in "LNM" or kind == "So")


def in_windows(
    examples: Examples, kind: Kind, tokenizer: Tokenizer, *, split: Split, max_length: int, overlap: float
) -> Examples:
    """Return rows whose long texts are taken apart into windows, each a row; they are those that a server reads.

    Args:
        examples: Rows of single texts.
        kind: A kind that answers by token.
        tokenizer: A tokenizer that nothing else uses: its truncation is set.
        split: The split. Windows of dev texts do not overlap, so that each word is measured once.
        max_length: The longest text in tokens.
        overlap: The share of a window that the next one reads again.
    """
    tokenizer.enable_truncation(max_length)
    room = max_length - tokenizer.num_special_tokens_to_add(False)

    def pieces(part: str) -> Encoding:
        return tokenizer.encode(part, add_special_tokens=False)

    texts: list[str] = []
    targets: list[Any] = []
    long_texts = windows = 0
    for text, target in zip(examples.texts, examples.targets, strict=True):
        assert isinstance(text, str), "a kind that answers by token reads single texts"
        places = [(0, len(text))]
        if tokenizer.encode(text).overflowing:
            share = overlap if split == "train" else 0.0
            places = windows_of(text, pieces, tokens=room, overlap=share, most=len(text)) or places
            long_texts, windows = long_texts + 1, windows + len(places)
        texts += [text[start:end] for start, end in places]
        targets += [kind.codec.part(target, start, end) for start, end in places]
    if not long_texts:
        return examples
    note = (
        f"{long_texts:,} of {len(examples):,} {split} texts {'is' if long_texts == 1 else 'are'} longer than "
        f"{max_length} tokens, and read in {counted(windows, 'window', 'windows')}"
    )
    return replace(examples, texts=tuple(texts), targets=tuple(targets), notes=(*examples.notes, note))


def targets_of(
    kind: Kind,
    encoded: Sequence[Any],
    config: KindConfig,
    texts: Texts,
    tokenizer: Callable[[], Tokenizer],
    max_length: int,
) -> NDArray[Any]:
    """Return the targets of encoded labels, for which a kind that answers by token needs the texts' tokens.

    Args:
        kind: The kind.
        encoded: The encoded labels.
        config: The task's configuration.
        texts: The texts.
        tokenizer: Creates the tokenizer; called only if the kind needs it.
        max_length: The length at which texts are truncated, in tokens.

    Returns:
        *Shape:* (texts, ...)
    """
    offsets = token_offsets(tokenizer(), texts, max_length) if kind.by_token else None
    return kind.codec.targets(encoded, config, offsets)


def token_offsets(tokenizer: Tokenizer, texts: Texts, max_length: int) -> Offsets:
    """Return the start and the end of each token in its text, in characters, as the tokenizer model serves them.

    Tokens that are in no word, such as special tokens and blanks, have the same start and end.

    Args:
        tokenizer: A tokenizer that nothing else uses: its truncation is set.
        texts: The texts.
        max_length: The length at which they are truncated, in tokens.
    """
    tokenizer.enable_truncation(max_length)
    found: list[list[tuple[int, int]]] = []
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        some = list(texts[start : start + _TOKENIZER_BATCH])
        for text, row in zip(some, tokenizer.encode_batch(some), strict=True):
            places = token_places(row, text if isinstance(text, str) else text[0])
            found.append([(0, 0) if place is None else place[1:] for place in places])
    return found
