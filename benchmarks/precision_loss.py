"""What the shipped heads lose in a lower precision: every task's metric on all of its dev data, as the gate does.

    ONETRUNK_DATA=... python -m benchmarks.precision_loss --output docs/results/performance

Needs the tasks' data (see tasks/*.toml). Writes precision.md and precision.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.compare.result import describe_machine
from onetrunk.export.precision import parse_precision
from onetrunk.export.sessions import computes_in_bf16
from onetrunk.protocol.manifest import GateResult
from onetrunk.repository import BuildReport, BuildRequest, build_repository
from onetrunk.repository.gate_settings import GateSettings

ROOT = Path(__file__).resolve().parent.parent
# Precision, rows a task (0: all), and whose ONNX Runtime measures it: this one, or that of the Triton release. All rows
# where it is the figure that counts, the gate's usual sample elsewhere.
MEASURED: tuple[tuple[str, int, Literal["own", "release"]], ...] = (
    ("int8", 0, "own"),
    ("int8", 0, "release"),
    ("trunk=fp32,heads=int8", 1000, "own"),
    ("bf16", 0, "own"),
)


def measure(precision: str, rows: int, runtime: Literal["own", "release"], folder: Path) -> BuildReport:
    """Builds a repository of the shipped heads; nothing that a task loses stops it."""
    data = os.environ.get("ONETRUNK_DATA")
    gate = GateSettings(
        max_loss=100,
        rows=rows,
        runtime=runtime,
        task_dir=ROOT / "tasks",
        data_root=Path(data) if data else None,
    )
    return build_repository(
        BuildRequest(
            output=folder / "repository", heads=ROOT / "heads", precision=parse_precision(precision), gate=gate
        ),
        progress=lambda what, done, total: print(f"{precision}: {what} {done}/{total}", file=sys.stderr, end="\r"),
    )


def greatest_loss(results: Mapping[str, GateResult]) -> float:
    """Return the greatest loss of a task in points; NaN if any is NaN, which max() could lose."""
    return float(np.max([result.loss for result in results.values()]))


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    lines = [
        "# What a lower precision loses\n",
        "`ONETRUNK_DATA=... python -m benchmarks.precision_loss --output docs/results/performance`: the shipped heads "
        f"on their dev rows, padded to buckets, on {machine['processor']}; {machine['when']}. Scores x 100, loss in "
        "points; the gate allows 0.5. bf16 is measured where a processor has matrix units for it.\n",
        "| precision | measured by | task | metric | rows | fp32 | reduced | loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    losses: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, rows, runtime in MEASURED:
            if precision == "bf16" and not computes_in_bf16():
                continue
            results = measure(precision, rows, runtime, Path(folder)).gate
            for task, one in sorted(results.items()):
                scores = f"{100 * one.fp32:.2f} | {100 * one.reduced:.2f} | {one.loss:+.2f}"
                lines.append(f"| {precision} | {one.measured_by} | {task} | {one.metric} | {one.rows:,} | {scores} |")
            by = next(iter(results.values())).measured_by
            losses.setdefault(precision, {})[by] = greatest_loss(results)
            # Written after each: the later ones take minutes.
            (options.output / "precision.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            figures: dict[str, Any] = {
                f"{name}_metric_loss": float(np.max(list(losses[name].values()))) if name in losses else None
                for name in ("int8", "bf16")
            }
            figures |= {"losses": losses, "machine": machine}
            (options.output / "precision.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
