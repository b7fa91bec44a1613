"""Answers for people (a table) and for programs (JSON)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onetrunk.client.answer import Answer, Prediction
from onetrunk.client.lines import Line
from onetrunk.client.readers import answers_of
from onetrunk.protocol.command import as_printed
from onetrunk.protocol.ensemble_info import TaskInfo

_MOST_CHARACTERS = 300
_MOST_ANSWERS = 120
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def answer_record(line: Line, answer: Answer, *, top: int | None, numbered: bool) -> dict[str, Any]:
    """Return an answer as JSON values.

    Args:
        line: The row.
        answer: Its answer.
        top: The number of labels whose scores to include; None for all.
        numbered: Whether to include the number of the line.
    """
    record: dict[str, Any] = {"line": line.number} if numbered else {}
    record["text"] = line.text
    if line.pair is not None:
        record["text_pair"] = line.pair
    record["truncated"] = answer.truncated
    record["ms"] = round(answer.ms, 2)
    record["predictions"] = {task: _record(said, top) for task, said in answer.predictions.items()}
    return record


def _record(prediction: Prediction, top: int | None) -> dict[str, Any]:
    windows = {"windows": prediction.windows} if prediction.windows > 1 else {}
    return prediction.record(top) | windows


def answer_table(answered: Iterable[tuple[Line, Answer]], *, top: int) -> Table:
    """Return a table with the ``top`` most likely labels of each task."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("text", max_width=48, overflow="fold")
    table.add_column("task")
    table.add_column("label")
    table.add_column("score", justify="right")
    table.add_column("ms", justify="right")
    for line, answer in answered:
        text = Text(_readable(line.text))
        if line.pair is not None:
            text.append(f"\n{_readable(line.pair)}")
        if note := _length_note(answer):
            text.append(f"\n({note})", style="yellow")
        marks = [mark for said in answer.predictions.values() for mark in said.marks()]
        styles = _styles(kind for *_, kind in marks)
        for start, end, kind in marks:
            # Where they are as shown: an escape is longer than the character that it stands for.
            places = (len(_readable(line.text[: min(one, _MOST_CHARACTERS)])) for one in (start, end))
            text.stylize(styles[kind], *places)
        rows = [row for said in answer.predictions.values() for row in _table_rows(said, top, styles)]
        for at, (task, label, score) in enumerate(rows):
            first = at == 0
            table.add_row(
                text if first else "",
                task,
                label,
                score,
                f"{answer.ms:.1f}" if first else "",
                end_section=at == len(rows) - 1,
            )
    return table


def _length_note(answer: Answer) -> str:
    """Return what a reader should know about a long text, or nothing."""
    windows = max(said.windows for said in answer.predictions.values())
    notes = ["too long: its end was not read"] if answer.truncated else []
    if windows > 1:
        others = any(said.windows == 1 for said in answer.predictions.values())
        notes.append(f"read in {windows} windows" + (", by the tasks that do so" if others else ""))
    return "; ".join(notes)


def _styles(kinds: Iterable[str]) -> dict[str, str]:
    """Return a colour for each kind of mark, the same in the text and beside its label."""
    return {kind: f"bold {_COLOURS[at % len(_COLOURS)]}" for at, kind in enumerate(dict.fromkeys(kinds))}


def _table_rows(prediction: Prediction, top: int, styles: Mapping[str, str]) -> list[tuple[str, Text, str]]:
    kinds = [styles[kind] for *_, kind in prediction.marks()]
    return [
        (prediction.task if at == 0 else "", Text(_readable(label), style=style or ""), score)
        for at, ((label, score), style) in enumerate(zip_longest(prediction.lines(top), kinds))
    ]


def _readable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text shortened, and without control characters, which could move a terminal's cursor."""
    clean = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return as_printed(clean[:most] + "…" if len(text) > most else clean, sys.stdout)


def task_record(task: TaskInfo) -> dict[str, Any]:
    """Return a task as JSON values."""
    return task.model_dump(mode="json")


def task_table(tasks: Iterable[TaskInfo]) -> Table:
    """Return a table of tasks. ``at`` is the tap and the head's layers."""
    # Without lines between them, the columns leave room for a label in a terminal of 80 columns.
    most = _MOST_ANSWERS if Console().is_terminal else sys.maxsize - 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    table.add_column("form", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("at", no_wrap=True)
    table.add_column("v.", justify="right", no_wrap=True)
    table.add_column("answers", overflow="fold")
    for task in tasks:
        table.add_row(
            *(task.name, task.form, task.kind, task.metric),
            *(f"{task.tap}+{task.layers}", str(task.version), escape(_readable(answers_of(task), most))),
        )
    return table
