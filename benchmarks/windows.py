"""What long texts cost by the number of their windows, and what the choice costs texts that fit: nothing.

    python -m benchmarks.windows --output docs/results/windows

A server is started with one head twice, as a task that reads windows and as one that cuts, and with a tagging head that
reads windows. Each figure is the median of several requests, sent one after the other by the client over gRPC.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.compare.texts import texts_of_length
from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.client.bench.run import settled_counters
from onetrunk.machine import processor_name, usable_cores
from onetrunk.nn.bundle import WEIGHTS, replace_spec
from onetrunk.nn.trunk import load_trunk
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import read_spec

HEADS = Path(__file__).resolve().parents[1] / "heads"
# Task of the benchmark -> the head that it is, and how it reads long texts.
TASKS = {"cut": ("sst2", "cut"), "label": ("sst2", "windows"), "spans": ("slots", "windows")}
WINDOWS = (2, 4, 8, 16, 32, 64, 128)
LENGTH, OVERLAP = 128, 0.25
SPECIAL = 2


def build(folder: Path) -> Path:
    """Build a repository of the tasks, and return its folder."""
    for task, (head, long_texts) in TASKS.items():
        (folder / "heads" / task).mkdir(parents=True)
        shutil.copy(HEADS / head / WEIGHTS, folder / "heads" / task / WEIGHTS)
        spec = read_spec(HEADS / head)
        replace_spec(folder / "heads" / task, spec.model_copy(update={"task": task, "long_texts": long_texts}))
    build_repository(BuildRequest(output=folder / "repository", heads=folder / "heads", max_length=LENGTH))
    return folder / "repository"


def long_text(windows: int) -> str:
    """Return a text of so many windows, of English words that are one token each."""
    step = LENGTH - SPECIAL - int(OVERLAP * (LENGTH - SPECIAL))
    words = ["the", "film", "was", "very", "good", "and", "the", "music", "was", "not"]
    tokens = LENGTH - SPECIAL + (windows - 1) * step
    return " ".join(words[at % len(words)] for at in range(tokens))


def median_ms(ask: Callable[[], Any], rounds: int) -> float:
    """Return the median milliseconds of a request."""
    ask()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def measure_windows(client: Client, task: str) -> list[dict[str, float]]:
    """Return the milliseconds of a text by the number of its windows."""
    rows = []
    for windows in WINDOWS:
        text = long_text(windows)
        (answer,) = client.predict([text], tasks=[task])
        assert (answer[task].windows, answer.truncated) == (windows, False)
        ms = median_ms(lambda text=text: client.predict([text], tasks=[task]), 5)  # type: ignore[misc]
        rows.append({"windows": windows, "ms": round(ms, 2), "ms_a_window": round(ms / windows, 3)})
    return rows


def measure_short(client: Client, admin: AdminClient, rounds: int) -> dict[str, Any]:
    """Ask a task that cuts and one that reads windows about texts that fit, in turn."""
    texts = texts_of_length(load_trunk(), 32)[:8]
    found: dict[str, list[float]] = {"cut": [], "label": []}
    for _ in range(rounds):
        for task, ms in found.items():
            ms.append(median_ms(lambda task=task: client.predict(texts, tasks=[task]), 5))  # type: ignore[misc]
    requests = {}
    for task in found:
        before = {name: one.requests for (name, _), one in settled_counters(admin.statistics).items()}
        client.predict(texts, tasks=[task])
        after = {name: one.requests for (name, _), one in settled_counters(admin.statistics).items()}
        requests[task] = {
            name: after[name] - before[name] for name in ("multitask", "tokenizer") if after[name] > before[name]
        }
    ratios = np.divide(found["label"], found["cut"])
    return {
        "texts": len(texts),
        "ms_cut": round(statistics.median(found["cut"]), 2),
        "ms_windows": round(statistics.median(found["label"]), 2),
        "ratio": round(float(np.median(ratios)), 3),
        "requests_cut": requests["cut"],
        "requests_windows": requests["label"],
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Folder for summary.json.")
@click.option("--rounds", default=15, help="Comparisons of texts that fit; the median counts.")
def main(output: Path | None, rounds: int) -> None:
    """Measure long texts on a server that this starts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(build(Path(folder)), http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server,
        Client(server.grpc_url) as client,
        AdminClient(server.grpc_url) as admin,
    ):
        labels, spans = measure_windows(client, "label"), measure_windows(client, "spans")
        short = measure_short(client, admin, rounds)
    record = {
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "command": "python -m benchmarks.windows --output docs/results/windows",
        "window_tokens": LENGTH,
        "label": labels,
        "spans": spans,
        "short": short,
        # 1 is proportional: a window of many costs what one of few does.
        "ms_a_window_64_vs_8": {
            name: round(rows[WINDOWS.index(64)]["ms_a_window"] / rows[WINDOWS.index(8)]["ms_a_window"], 3)
            for name, rows in (("label", labels), ("spans", spans))
        },
    }
    json.dump(record, sys.stdout, indent=2)
    print()
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "summary.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
