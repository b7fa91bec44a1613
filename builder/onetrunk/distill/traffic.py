"""A team's traffic, read from a file of texts: how long they are, and which tasks are asked about each."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from onetrunk.distill.costs import Traffic
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.repository.length_sample import sample_file, text_records
from onetrunk.tasks.records import BrokenLine

TASKS_FIELD = "tasks"
_HUNDREDTH = 0.01


def read_traffic(
    file: Path, tasks: Sequence[str], trunk: Trunk, lengths: Sequence[int], progress: ProgressCallback = silent
) -> tuple[Traffic, tuple[str, ...]]:
    """Count a file's texts by their lengths and by the tasks that are asked about them.

    Args:
        file: A .txt, JSON Lines, CSV or TSV file, as ``build-repo --texts`` reads it. A row may name the tasks that are
            asked about it in ``tasks``: a list, or names with commas; without, all are.
        tasks: The tasks that are planned for.
        trunk: The trunk, whose tokenizer is used.
        lengths: The padded lengths at which costs were measured, the shortest first; longer texts count as the longest.
        progress: Called before the file is read.

    Returns:
        The traffic, and notes on lines that were left out.

    Raises:
        UserError: The file cannot be read or contains no texts, or no row asks for one of the tasks.
    """
    sample = sample_file(file, trunk, lengths[-1], progress)
    texts = sum(sample.lengths.values())
    counts: Counter[int] = Counter()
    for length, count in sample.lengths.items():
        counts[lengths[min(bisect_left(lengths, length), len(lengths) - 1)]] += count
    found = Traffic(
        source=file.name,
        texts=texts,
        lengths={str(length): round(count / texts, 6) for length, count in sorted(counts.items())},
        asked=_shares(file, tasks),
    )
    return found, sample.notes


def _shares(file: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Return the share of texts about which each task is asked. Rows may ask for other tasks, too."""
    asked, rows = Counter(dict.fromkeys(tasks, 0)), 0
    for named in _named(file):
        rows += 1
        asked.update(set(tasks) if named is None else named & set(tasks))
    if unasked := [task for task, count in asked.items() if not count]:
        raise UserError(
            f"{file}: no row asks for {', '.join(unasked)}: leave it out of --tasks, or name it in {TASKS_FIELD!r} of "
            "the rows that ask for it"
        )
    return {task: max(_HUNDREDTH, round(count / rows, 2)) for task, count in asked.items()}


def _named(file: Path) -> Iterator[set[str] | None]:
    """Yield the tasks that each row names; None for a row that names none."""
    for record in text_records(file):
        if isinstance(record, BrokenLine):
            continue
        value = record.values.get(TASKS_FIELD)
        names = value.split(",") if isinstance(value, str) else value
        if names is None or names == [""]:
            yield None
        elif isinstance(names, list) and all(isinstance(name, str) for name in names):
            yield {name.strip() for name in names}
        else:
            raise UserError(f"{file}: {TASKS_FIELD!r} is {value!r:.60}: give a list of tasks, or names with commas")
