"""perf_analyzer: finding it, making it start if one of its libraries is inside another package, and one run of it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from onetrunk.client.bench.samples import Sample
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.protocol.tls import Tls

HOW_TO_GET = """\
On x86-64 Linux with glibc 2.34 or later:
  pip install 'tritonclient==2.51.0'       the wheel carries perf_analyzer
  apt-get install libb64-0d                Debian and Ubuntu
  libcudart.so.12, no GPU needed           in the packages nvidia-pytriton and nvidia-cuda-runtime-cu12
Anywhere else it is in NVIDIA's container: docker compose run --rm bench"""

# Packages with a CUDA runtime library in them, which perf_analyzer is linked against even for CPU servers.
CUDA_PACKAGES = ("nvidia-cuda-runtime-cu12", "nvidia-pytriton")
CUDA_LIBRARY = re.compile(r"libcudart(-[0-9a-f]+)?\.so\.12(\.\d+)*$")


class NoPerfAnalyzer(OneTrunkError):  # noqa: N818 - named as a state, not a mistake
    """perf_analyzer is missing or does not start. The message says how to get it."""

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}\n{HOW_TO_GET}")


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that starts.

    Attributes:
        path: The program.
        environment: The environment to start it in.
        version: The version that it reports.
    """

    path: Path
    environment: Mapping[str, str]
    version: str


@contextmanager
def find_perf_analyzer(path: Path | None = None) -> Iterator[PerfAnalyzer]:
    """Find the program, and keep its environment for the time of the context.

    Args:
        path: The program; None to search beside this Python and then on PATH.

    Raises:
        NoPerfAnalyzer: There is none, or it does not start.
    """
    program = path or _search()
    with TemporaryDirectory(prefix="perf-analyzer-") as folder:
        environments = [dict(os.environ), _with_cuda_library(Path(folder))]
        complaint = ""
        for environment in environments:
            version, complaint = _start(program, environment)
            if version:
                yield PerfAnalyzer(program, environment, version)
                return
        raise NoPerfAnalyzer(f"{program} does not start: {complaint.splitlines()[0]}")


def _search() -> Path:
    beside = Path(sys.executable).parent / "perf_analyzer"  # a virtual environment need not be on PATH
    found = str(beside) if beside.exists() else shutil.which("perf_analyzer")
    if found is None:
        raise NoPerfAnalyzer("perf_analyzer was found neither beside this Python nor on PATH.")
    return Path(found)


def _start(program: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return its version, or an empty string and the reason why it did not start."""
    try:
        done = subprocess.run(
            [program, "--version"], env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    said = (done.stdout + done.stderr).strip()
    match = re.search(r"Version (\S+)", said)
    return (match[1], "") if done.returncode == 0 and match else ("", said or f"exit code {done.returncode}")


def _with_cuda_library(folder: Path) -> dict[str, str]:
    """Return this environment with a folder on the library path that holds libcudart.so.12 under its proper name.

    The copy in a wheel has a hash in its name, and is beside libraries that must not be found instead of the system's.
    """
    environment = dict(os.environ)
    library = _cuda_library()
    if library is not None:
        (folder / "libcudart.so.12").symlink_to(library)
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{folder}:{others}" if others else str(folder)
    return environment


def _cuda_library() -> Path | None:
    """Search the packages' lists of files, without importing any of them."""
    for package in CUDA_PACKAGES:
        try:
            listed = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in listed:
            if CUDA_LIBRARY.fullmatch(file.name):
                return Path(str(file.locate())).resolve()
    return None


# perf_analyzer compares its last three windows, so it cannot run fewer.
WINDOWS = 3

WINDOW_LINE = re.compile(r"Pass \[\d+\] throughput: ([\d.]+) infer/sec")


@dataclass(frozen=True)
class Load:
    """Throughput and latency as the clients saw them.

    Attributes:
        throughput: Requests of one row answered per second.
        spread: The spread of the windows, (highest - lowest) / mean throughput.
        p50_ms: The median latency.
        p99_ms: The 99th percentile of the latency.
    """

    throughput: float
    spread: float
    p50_ms: float
    p99_ms: float


def run_load(
    program: PerfAnalyzer,
    url: str,
    model: str,
    samples: Sequence[Sample],
    concurrency: int,
    seconds: float,
    *,
    tls: Tls | None = None,
) -> Load:
    """Send the rows again and again, one row in each request.

    Args:
        program: perf_analyzer.
        url: Host and port of the server's gRPC endpoint.
        model: The ensemble.
        samples: The rows.
        concurrency: The number of requests at a time.
        seconds: About how long to send.
        tls: The client's side of TLS; None connects without.

    Raises:
        ServerError: A request or perf_analyzer failed. The message is perf_analyzer's.
    """
    with TemporaryDirectory(prefix="bench-repo-") as name:
        folder = Path(name)
        (folder / "input.json").write_text(
            json.dumps({"data": [sample.step(model) for sample in samples]}), encoding="utf-8"
        )
        command = [
            *(str(program.path), "-v", "-m", model, "-i", "grpc", "-u", url, "-b", "1"),
            *_tls_arguments(tls),
            *("--input-data", str(folder / "input.json"), "--concurrency-range", str(concurrency)),
            *("--measurement-interval", str(max(100, round(seconds * 1000 / WINDOWS))), "--max-trials", str(WINDOWS)),
            # Accept any spread of the windows and report it, instead of failing.
            *("--stability-percentage", "999", "-f", str(folder / "report.csv")),
        ]
        try:
            done = subprocess.run(
                command,
                env=program.environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds * 10 + 120,
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"perf_analyzer on {model} did not end; does the server answer?") from None
        report = folder / "report.csv"
        if done.returncode != 0 or not report.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ServerError(
                f"perf_analyzer on {model} failed: {' '.join(said[-3:]) or f'exit code {done.returncode}'}"
            )
        return read_load(report.read_text(encoding="utf-8"), done.stdout)


def _tls_arguments(tls: Tls | None) -> list[str]:
    """Return perf_analyzer's options for the files of a client."""
    if tls is None:
        return []
    files = {"root-certifications": tls.ca, "private-key": tls.key, "certificate-chain": tls.certificate}
    given = {name: str(file) for name, file in files.items() if file is not None}
    return ["--ssl-grpc-use-ssl", *(part for name in given for part in (f"--ssl-grpc-{name}-file", given[name]))]


def read_load(report: str, output: str) -> Load:
    """Read perf_analyzer's CSV report, and the throughput of each window from its output.

    Raises:
        ServerError: A column is missing.
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
