"""What a comparison came to, as a file a scenario: a scenario can be measured again without the others."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.compare.measure import Measured, Sample
from onetrunk.files import atomic_write_text
from onetrunk.machine import processor_model, usable_cores

_PACKAGES = ("onetrunk", "onnxruntime", "torch", "transformers", "nvidia-pytriton", "tritonclient")


@dataclass(frozen=True)
class Point:
    """One system under one load.

    Attributes:
        system: its name.
        what: what it is.
        tokens: length of the texts, all of them.
        concurrency: texts on their way at a time.
        tasks: how many tasks were answered for a text.
        measured: the figures.
        weights_mb: size of the model files; None where it is not known.
    """

    system: str
    what: str
    tokens: int
    concurrency: int
    tasks: int
    measured: Measured
    weights_mb: float | None = None


@dataclass
class Result:
    """All points of a scenario.

    Attributes:
        name: the scenario's.
        title: what it is about.
        settings: seconds and repeats of a point.
        machine: where.
        points: the measured points.
        figures: further numbers.
    """

    name: str
    title: str
    settings: dict[str, float]
    machine: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def find(self, system: str, tokens: int, concurrency: int, tasks: int | None = None) -> Point:
        """The point of that name. Raises KeyError where it was not measured."""
        for point in self.points:
            wanted = (system, tokens, concurrency)
            if (point.system, point.tokens, point.concurrency) == wanted and tasks in (None, point.tasks):
                return point
        raise KeyError(f"{self.name}: {system}, {tokens} tokens, {concurrency} at a time was not measured")

    def save(self, folder: Path) -> Path:
        """Writes ``<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        atomic_write_text(path, json.dumps(asdict(self), indent=1) + "\n")
        return path


def load_result(path: Path) -> Result:
    """Reads what ``save`` wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    points = []
    for value in values.pop("points"):
        measured = value.pop("measured")
        samples = [Sample(**sample) for sample in measured.pop("samples")]
        points.append(Point(**value, measured=Measured(samples=samples, **measured)))
    return Result(**values, points=points)


def describe_machine() -> dict[str, str]:
    """Processor, cores, date and versions."""
    found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "processor": f"{processor_model()} ({', '.join(_instructions())})",
        "cores": str(usable_cores()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _instructions() -> list[str]:
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16") if name in there]
