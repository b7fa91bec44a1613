"""The figures of a benchmark as tables for people, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onetrunk.client.bench.run import Report

LOAD_COLUMNS = ("model", "tokens", "at a time", "requests/s", "spread %", "p50 ms", "p99 ms")
PART_COLUMNS = ("model", "tokens", "at a time", "part", "requests", "rows a run", "queue ms", "compute ms")


def load_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each point, with `LOAD_COLUMNS`."""
    return [
        (
            *(point.model, str(point.bucket), str(point.concurrency), f"{point.load.throughput:.1f}"),
            *(f"{point.load.spread * 100:.0f}", f"{point.load.p50_ms:.2f}", f"{point.load.p99_ms:.2f}"),
        )
        for point in report.points
    ]


def part_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each point and part, with `PART_COLUMNS`."""
    return [
        (
            *(point.model, str(point.bucket), str(point.concurrency), part.part, str(part.requests)),
            *(f"{part.rows_a_run:.2f}", f"{part.queue_ms:.3f}", f"{part.compute_ms:.3f}"),
        )
        for point in report.points
        for part in point.parts
    ]


def report_record(report: Report) -> dict[str, Any]:
    """Return everything as JSON values."""
    return asdict(report)


def save_report(report: Report, folder: Path) -> list[Path]:
    """Write bench.json, bench.md, load.csv and parts.csv, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "bench.json": json.dumps(report_record(report), indent=2) + "\n",
        "bench.md": _markdown(report),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    _write_csv(folder / "load.csv", LOAD_COLUMNS, load_rows(report))
    _write_csv(folder / "parts.csv", PART_COLUMNS, part_rows(report))
    return [folder / name for name in (*contents, "load.csv", "parts.csv")]


def load_table(report: Report) -> Table:
    """Return a table of throughput and latency."""
    table = _table(LOAD_COLUMNS)
    rows = load_rows(report)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row, end_section=following is None or following[:2] != row[:2])
    return table


def part_table(report: Report) -> Table:
    """Return a table of the parts' times at the highest concurrency. The files hold all of them."""
    table = _table(PART_COLUMNS[3:])
    highest = max(point.concurrency for point in report.points)
    shown: tuple[str, ...] = ()
    for row in part_rows(report):
        model, bucket, concurrency, *figures = row
        if concurrency != str(highest):
            continue
        if shown != (model, bucket):
            shown = (model, bucket)
            table.add_section()
            table.add_row(f"[bold]{model}, {bucket} tokens")
        table.add_row(*figures)
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "part") else "right", no_wrap=True)
    return table


def _markdown(report: Report) -> str:
    about = (
        f"{report.when}, {report.machine}, {report.cpus} CPUs, Triton {report.server}, "
        f"load by {report.load_by}, trunk {report.trunk}, tasks {', '.join(report.tasks)}, "
        f"texts: {report.texts}, {report.seconds:g} s a point, one row a request."
    )
    return "\n".join(
        [
            "# Benchmark\n",
            about + "\n",
            *_markdown_table(LOAD_COLUMNS, load_rows(report)),
            "\nTriton's own mean times of each part:\n",
            *_markdown_table(PART_COLUMNS, part_rows(report)),
            "",
        ]
    )


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
