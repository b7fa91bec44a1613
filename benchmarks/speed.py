"""A small, steady part of the comparison for every change: exits with 1 where a ratio is lost.

    python -m benchmarks.speed        a minute or two; also `make speed`

It compares processor time, not throughput: what else the machine does changes that little. A model's own part of a
request costs the same on every processor, and its layers do not, so the ratios depend on the machine: eight grouped
tasks came to 1.1 to 1.5 times one model, and a model a head to 1.6 to 2.9 times. The bounds are a third from the
greatest that was measured, so that only a real loss fails.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.compare.measure import Measured, measure_in_turn
from benchmarks.compare.names import GROUPED, INT8, SEPARATE, SINGLE
from benchmarks.compare.scenarios import Bench, Ours
from benchmarks.compare.shapes import small_shape
from benchmarks.compare.texts import texts_of_length

TOKENS, CONCURRENCY, SECONDS, REPEATS = 32, 4, 2.0, 5
_ALONE = "one task of eight"

# What, how it comes out, and the bound that it must stay below.
BOUNDS: tuple[tuple[str, Callable[[dict[str, Measured]], float], float], ...] = (
    ("eight tasks, grouped, against one single-task model", lambda m: _ratio(m, GROUPED, SINGLE), 2.0),
    ("eight tasks, grouped and in int8, against one single-task model", lambda m: _ratio(m, INT8, SINGLE), 1.10),
    ("eight tasks, a model a head, against one single-task model", lambda m: _ratio(m, SEPARATE, SINGLE), 3.9),
    ("one task of eight against all eight", lambda m: _ratio(m, _ALONE, SEPARATE), 0.75),
)


def _ratio(measured: dict[str, Measured], one: str, other: str) -> float:
    return min(sample.cpu_ms for sample in measured[one].samples) / min(
        sample.cpu_ms for sample in measured[other].samples
    )


def is_lost(found: float, bound: float) -> bool:
    """Return whether a ratio misses its bound. NaN does."""
    return not found <= bound


def main() -> None:
    """Measures, prints the ratios, and fails where one is lost."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        bench = Bench(Path(folder), Path("heads"), SECONDS, REPEATS, 2, None, lambda *_: None)
        ours = Ours(bench, small_shape(bench.folder))
        separate = ours.build(SEPARATE, grouped=False)
        systems = {
            SEPARATE: separate,
            _ALONE: replace(separate, name=_ALONE, outputs=("task_00",)),
            GROUPED: ours.build(GROUPED),
            INT8: ours.build(INT8, precision="int8"),
            SINGLE: ours.others(separate).single(1, 1, SINGLE),
        }
        targets = {name: running.enter_context(system.running()) for name, system in systems.items()}
        texts = texts_of_length(ours.trunk, TOKENS)
        measured = measure_in_turn(targets, texts, CONCURRENCY, SECONDS, REPEATS)
    lost = False
    # Without these instructions integers are hardly faster than floats (docs/precision.md): nothing to judge then.
    integers = "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    print(f"processor time, default trunk, one-layer heads on tap 4, {TOKENS} tokens, {CONCURRENCY} at a time")
    for what, ratio, bound in BOUNDS:
        found = ratio(measured)
        judged = integers or "int8" not in what
        lost = lost or (judged and is_lost(found, bound))
        state = "LOST" if is_lost(found, bound) else "ok"
        print(f"{state if judged else 'open':5}{found:5.2f}  (at most {bound:.2f})  {what}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
