"""Markdown tables and the format of the figures in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onetrunk.distill.results import SeedScores

NOT_YET = "not measured yet"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table. A ``|`` inside a cell is escaped."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*head, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)]


def points(score: float | None, digits: int = 1) -> str:
    """Format a score in hundredths: 82.5."""
    return NOT_YET if score is None else f"{100 * score:.{digits}f}"


def gain(difference: float | None, digits: int = 1) -> str:
    """Format a difference of scores in hundredths with its sign: +0.4."""
    # Rounding first and adding 0.0 turns -0.0 into +0.0.
    return NOT_YET if difference is None else f"{round(100 * difference, digits) + 0.0:+.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share: 99.6%."""
    return NOT_YET if share is None else f"{100 * share:.{digits}f}%"


def times(ratio: float | None, digits: int = 2) -> str:
    """Format a multiple: 1.85x."""
    return NOT_YET if ratio is None else f"{ratio:.{digits}f}x"


def over_seeds(scores: SeedScores | None) -> str:
    """Format a mean with its deviation and the number of seeds: 82.5 ± 0.4 (3)."""
    if scores is None:
        return NOT_YET
    if scores.deviation is None:
        return f"{points(scores.mean)} (1)"
    return f"{points(scores.mean)} ± {points(scores.deviation)} ({scores.seeds})"


def count(number: int | None) -> str:
    """Format a number of things: 1,234."""
    return NOT_YET if number is None else f"{number:,}"


def seconds(value: float | None) -> str:
    """Format whole seconds: 1,234."""
    return NOT_YET if value is None else f"{value:,.0f}"
