"""One run of perf_analyzer, and its figures."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from onetrunk.client.bench.installation import PerfAnalyzer
from onetrunk.client.bench.samples import Sample
from onetrunk.protocol.errors import ServerError

# perf_analyzer calls a result stable by comparing its last three windows, so three is the least it can run.
WINDOWS = 3

WINDOW_LINE = re.compile(r"Pass \[\d+\] throughput: ([\d.]+) infer/sec")


@dataclass(frozen=True)
class Load:
    """What the clients saw.

    Attributes:
        throughput: requests of one row answered a second.
        spread: how far the windows were apart, (most - least) / mean throughput.
        p50_ms: half of the answers came within this time.
        p99_ms: 99 in 100 came within this time.
    """

    throughput: float
    spread: float
    p50_ms: float
    p99_ms: float


def run_load(
    program: PerfAnalyzer, url: str, model: str, samples: Sequence[Sample], concurrency: int, seconds: float
) -> Load:
    """Sends the rows round and round, ``concurrency`` at a time, one row a request, for about ``seconds``.

    Raises:
        ServerError: a request failed, or perf_analyzer did; with its own words.
    """
    with TemporaryDirectory(prefix="bench-repo-") as name:
        folder = Path(name)
        (folder / "input.json").write_text(json.dumps({"data": [sample.step(model) for sample in samples]}))
        command = [
            *(str(program.path), "-v", "-m", model, "-i", "grpc", "-u", url, "-b", "1"),
            *("--input-data", str(folder / "input.json"), "--concurrency-range", str(concurrency)),
            *("--measurement-interval", str(max(100, round(seconds * 1000 / WINDOWS))), "--max-trials", str(WINDOWS)),
            # Take the windows as they come, and report how far they were apart, instead of failing.
            *("--stability-percentage", "999", "-f", str(folder / "report.csv")),
        ]
        try:
            done = subprocess.run(
                command, env=program.environment, capture_output=True, text=True, timeout=seconds * 10 + 120
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"perf_analyzer on {model} hung; is the server well?") from None
        report = folder / "report.csv"
        if done.returncode != 0 or not report.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ServerError(
                f"perf_analyzer on {model} failed: {' '.join(said[-3:]) or f'exit code {done.returncode}'}"
            )
        return read_load(report.read_text(), done.stdout)


def read_load(report: str, output: str) -> Load:
    """Reads perf_analyzer's CSV report, and the throughput of each window from its output.

    Raises:
        ServerError: a column that is needed is missing.
    """
    try:
        row = next(csv.DictReader(report.splitlines()))
        throughput = float(row["Inferences/Second"])
        p50_ms, p99_ms = (float(row[f"{name} latency"]) / 1000 for name in ("p50", "p99"))
    except (StopIteration, KeyError, ValueError) as error:
        raise ServerError(f"perf_analyzer's report cannot be read: {error!r}") from None
    windows = [float(figure) for figure in WINDOW_LINE.findall(output)]
    spread = (max(windows) - min(windows)) / throughput if windows and throughput else 0.0
    return Load(throughput, spread, p50_ms, p99_ms)
