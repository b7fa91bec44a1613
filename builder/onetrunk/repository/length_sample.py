"""The lengths of real texts in tokens: of the served tasks' dev data, or of a user's own traffic."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.words import is_readable
from onetrunk.tasks import find_task, load_task, read_examples
from onetrunk.tasks.data_file import open_data, row_lines
from onetrunk.tasks.formats import read_records
from onetrunk.tasks.kinds.base import join_words
from onetrunk.tasks.records import BrokenLine, Record, RowError, RowErrors, is_not_utf8
from onetrunk.training.states import tokenise

Row = str | tuple[str, str]

# The fields that ask-repo and bench-repo read.
_WORDS = "tokens"
_TEXT, _PAIR = ("text", "sentence", _WORDS), ("text_pair", "sentence2")
_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class LengthSample:
    """The lengths of a sample of texts.

    Attributes:
        source: The texts in words, such as ``dev texts of cola, sst2``. It contains no path of the machine.
        lengths: Length in tokens, with special tokens and after truncation -> number of texts.
        notes: Remarks on the sample, such as how many rows were left out.
    """

    source: str
    lengths: Counter[int]
    notes: tuple[str, ...] = ()


def sample_tasks(
    tasks: Sequence[str],
    task_dir: Path,
    data_root: Path | None,
    trunk: Trunk,
    max_length: int,
    progress: ProgressCallback = silent,
) -> LengthSample:
    """Measure the dev texts of tasks. A task whose file or data are not found is left out, with a note.

    Args:
        tasks: The names of the tasks.
        task_dir: The folder of task files.
        data_root: The folder in which data files are looked for first.
        trunk: The trunk, whose tokenizer is used.
        max_length: The length in tokens at which texts are truncated.
        progress: Called before each task.

    Returns:
        The lengths of the texts of all tasks together.

    Raises:
        UserError: No task's texts were found.
    """
    lengths: Counter[int] = Counter()
    found, missing = [], {}
    for done, name in enumerate(tasks):
        progress(f"measuring the dev texts of {name}", done, len(tasks))
        try:
            dev = read_examples(load_task(find_task(name, task_dir)), "dev", data_root=data_root, skip_bad_rows=True)
        except UserError as error:
            missing[name] = str(error).splitlines()[0]
            continue
        lengths += count_lengths(dev.texts, trunk, max_length)
        found.append(name)
    if not found:
        reason = next(iter(missing.values()), "no tasks")
        raise UserError(f"no dev texts of {', '.join(tasks)} to choose buckets from; give --texts FILE, or: {reason}")
    notes = tuple(f"no dev texts of {name}: {reason}" for name, reason in missing.items())
    return LengthSample(f"dev texts of {', '.join(found)}", lengths, notes)


def sample_file(file: Path, trunk: Trunk, max_length: int, progress: ProgressCallback = silent) -> LengthSample:
    """Measure the texts of a file: lines of a .txt, or rows with ``text`` or ``tokens``, and ``text_pair`` for pairs.

    Lines that cannot be read are left out, with a note. A server would refuse them too.

    Args:
        file: A .txt, JSON Lines, CSV or TSV file, which may be compressed as .gz.
        trunk: The trunk, whose tokenizer is used.
        max_length: The length in tokens at which texts are truncated.
        progress: Called before the file is read.

    Returns:
        The lengths of its texts.

    Raises:
        UserError: The file cannot be read, or contains no texts.
    """
    progress(f"measuring the texts of {file.name}", 0, 1)
    errors = RowErrors()
    lengths = count_lengths(_rows(file, errors), trunk, max_length)
    left_out = "; ".join(line.strip() for line in errors.lines())
    if not lengths:
        raise UserError(
            f"{file}: it contains no texts" + (f"; lines that cannot be used: {left_out}" if left_out else "")
        )
    notes = (f"{file}: lines that cannot be used are left out: {left_out}",) if left_out else ()
    return LengthSample(file.name, lengths, notes)


def count_lengths(rows: Iterable[Row], trunk: Trunk, max_length: int) -> Counter[int]:
    """Return length in tokens -> number of texts and pairs. Rows are read in chunks, so that memory stays bounded."""
    lengths: Counter[int] = Counter()
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, _ROWS_AT_A_TIME)):
        singles = [row for row in chunk if isinstance(row, str)]
        pairs = [row for row in chunk if not isinstance(row, str)]
        for texts in (singles, pairs):
            if texts:
                lengths.update(tokenise(trunk, texts, max_length).lengths.tolist())
    return lengths


def text_records(file: Path) -> Iterator[Record | BrokenLine]:
    """Yield the lines of a .txt, each as a row with ``text``, or the rows of another file.

    Args:
        file: The file, which may be compressed as .gz.

    Raises:
        UserError: The file cannot be read.
    """
    return _plain_lines(file) if file.name.removesuffix(".gz").endswith(".txt") else read_records(file)


def _rows(file: Path, errors: RowErrors) -> Iterator[Row]:
    for record in text_records(file):
        if isinstance(record, BrokenLine):
            errors.add(record.place, "broken line", record.why)
            continue
        try:
            text, pair = (_text(record, names) for names in (_TEXT, _PAIR))
            if text is None:
                there = ", ".join(list(record.values)[:6])
                raise RowError("missing field", f"no {', '.join(_TEXT[:-1])} or {_WORDS}; there are: {there}")
            if not is_readable(text):
                raise RowError("empty text", f"{text!a:.40}")
        except RowError as error:
            errors.add(record.place, error.fault, error.why)
            continue
        yield (text, pair) if pair else text


def _text(record: Record, names: Sequence[str]) -> str | None:
    name = next((name for name in names if record.values.get(name) is not None), "")
    value = record.values.get(name)
    if name == _WORDS and isinstance(value, list):
        try:
            value = join_words(value)
        except ValueError as error:
            raise RowError("not a text", f"{name!r} {error}") from None
    if value is not None and (not isinstance(value, str) or is_not_utf8(value)):
        raise RowError("not a text", f"{value!r:.40}")
    return value


def _plain_lines(file: Path) -> Iterator[Record | BrokenLine]:
    number = 0
    try:
        with open_data(file) as stream:
            for number, raw in enumerate(row_lines(stream, file), start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield BrokenLine(number, f"invalid UTF-8 at byte {error.start + 1}")
                    continue
                if text.strip():
                    yield Record(number, {_TEXT[0]: text})
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read beyond line {number}: {error}") from error
