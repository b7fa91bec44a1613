"""What the shipped heads lose in a lower precision: every task's metric on all of its dev data, as the gate does.

    ONETRUNK_DATA=... python benchmarks/precision_loss.py --output docs/results/performance

Needs the tasks' data (see tasks/*.toml). Writes precision.md and precision.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.compare.result import describe_machine
from builder.export.precision import parse_precision
from builder.repository.build import BuildReport, build_repository
from builder.repository.gate_settings import GateSettings

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("int8", "trunk=fp32,heads=int8", "fp16")


def measure(precision: str, folder: Path) -> BuildReport:
    """Builds a repository of the shipped heads; nothing that a task loses stops it."""
    data = os.environ.get("ONETRUNK_DATA")
    gate = GateSettings(max_loss=100, rows=0, task_dir=ROOT / "tasks", data_root=Path(data) if data else None)
    return build_repository(
        folder / "repository",
        heads=ROOT / "heads",
        precision=parse_precision(precision),
        gate=gate,
        progress=lambda what, done, total: print(f"{precision}: {what} {done}/{total}", file=sys.stderr, end="\r"),
    )


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {precision: measure(precision, Path(folder)).gate for precision in PRECISIONS}
    machine = describe_machine()
    first = found[PRECISIONS[0]]
    lines = [
        "# What a lower precision loses\n",
        "`ONETRUNK_DATA=... python benchmarks/precision_loss.py --output docs/results/performance`: the shipped heads "
        f"on all dev rows, padded to buckets, in ONNX Runtime {machine['onnxruntime']} on {machine['processor']}; "
        f"{machine['when']}. "
        "Scores x 100; in brackets what is lost. The gate allows 0.5.\n",
        "| task | metric | rows | fp32 | " + " | ".join(PRECISIONS) + " |",
        "|---|---|---|---|" + "---|" * len(PRECISIONS),
    ]
    for task, result in sorted(first.items()):
        cells = [f"{100 * found[name][task].reduced:.2f} ({found[name][task].loss:+.2f})" for name in PRECISIONS]
        lines.append(f"| {task} | {result.metric} | {result.rows:,} | {100 * result.fp32:.2f} | {' | '.join(cells)} |")
    losses = {name: max(result.loss for result in results.values()) for name, results in found.items()}
    lines.append("\nGreatest loss: " + ", ".join(f"{name} {loss:+.2f}" for name, loss in losses.items()) + ".")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "precision.md").write_text("\n".join(lines) + "\n")
    figures = {"int8_metric_loss": losses["int8"], "losses": losses, "machine": machine}
    (options.output / "precision.json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
