"""What each model of a repository costs, with one thread and with more: measured as a server would run it."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from builder.export.names import ATTENTION_MASK, INPUT_IDS
from builder.progress import Progress, silent

# The first runs allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 21
_ENOUGH_S = 30.0
# Up to so many cores every number of threads is tried.
_ALL_UP_TO = 4

_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class PartTime:
    """What a text costs in a model, with one number of threads.

    Attributes:
        wall_ms: from start to end.
        cpu_ms: on all cores together.
    """

    wall_ms: float
    cpu_ms: float


Times = Mapping[str, Mapping[int, PartTime]]
"""Model -> number of threads -> what a text costs."""


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads to try, never more than there are cores: 1, 2, 3, 4, 6, 8, 12, 16 ..."""
    steps = [*range(1, _ALL_UP_TO + 1), *(n << k for k in range(1, 16) for n in (3, 4))]
    return sorted({step for step in steps if step < cores} | {cores})


def measure_parts(
    files: Mapping[str, Path], tokens: int, vocab_size: int, counts: Sequence[int], progress: Progress = silent
) -> dict[str, dict[int, PartTime]]:
    """Medians over some rounds, of which each runs all models with all numbers of threads in an order of its own.

    So a load on the machine that comes and goes meets all alike, and no model finds its weights in the processor's
    caches, which in a server the others' would have taken.

    Args:
        files: model -> its ONNX file.
        tokens: length of the text.
        vocab_size: of the tokenizer.
        counts: numbers of threads.
        progress: see Progress.
    """
    keys = [(name, count) for name in files for count in counts]
    sessions = {}
    for done, (name, count) in enumerate(keys):
        progress(f"loading {name}", done, len(keys))
        sessions[name, count] = _session(files[name], count)
    feeds = {name: _feed(sessions[name, counts[0]], tokens, vocab_size) for name in files}
    walls: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    cpus: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    order, step, started = random.Random(0), -_WARM_UP_ROUNDS, 0.0
    while step < _MOST_ROUNDS and (step < _FEWEST_ROUNDS or time.perf_counter() - started < _ENOUGH_S):
        progress(f"measuring {len(files)} models", max(step, 0), _MOST_ROUNDS)
        if step == 0:
            started = time.perf_counter()
        order.shuffle(keys)
        for key in keys:
            wall, cpu = time.perf_counter(), time.process_time()
            sessions[key].run(None, feeds[key[0]])
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if step >= 0:
                walls[key].append(1e3 * wall)
                cpus[key].append(1e3 * cpu)
        step += 1
    return {
        name: {count: PartTime(_median(walls[name, count]), _median(cpus[name, count])) for count in counts}
        for name in files
    }


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As our backend serves: threads that spin would count as work here, and take cores from other models there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _feed(session: onnxruntime.InferenceSession, tokens: int, vocab_size: int) -> dict[str, NDArray[Any]]:
    """One random text without padding."""
    generator, feed = np.random.default_rng(0), {}
    for tensor in session.get_inputs():
        shape = (1, tokens, *tensor.shape[2:])
        if tensor.name == INPUT_IDS:
            values: NDArray[Any] = generator.integers(0, vocab_size, shape)
        elif tensor.type == "tensor(int64)":
            values = np.ones(shape) if tensor.name == ATTENTION_MASK else np.zeros(shape)
        else:
            values = generator.standard_normal(shape)
        feed[tensor.name] = values.astype(_TYPES[tensor.type])
    return feed


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
