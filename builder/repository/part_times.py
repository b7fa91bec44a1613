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
from builder.repository.quiet import QUIET, free_share

# The first runs allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2
# So many rounds count, the quietest; more are run, within this time, until as many were quiet.
_ROUNDS = 7
_ENOUGH_S = 20.0
# Up to so many cores every number of threads is tried.
_ALL_UP_TO = 4

_Key = tuple[str, int]
_Feed = dict[str, NDArray[Any]]

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


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        times: see Times.
        free_share: how much of the cores' time other programs left meanwhile.
    """

    times: Times
    free_share: float


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads to try, never more than there are cores: 1, 2, 3, 4, 6, 8, 12, 16 ..."""
    steps = [*range(1, _ALL_UP_TO + 1), *(n << k for k in range(1, 16) for n in (3, 4))]
    return sorted({step for step in steps if step < cores} | {cores})


def measure_parts(
    files: Mapping[str, Path], tokens: int, vocab_size: int, cores: int, progress: Progress = silent
) -> Measurement:
    """Medians over some rounds, of which each runs all models with all numbers of threads in an order of its own.

    So a load on the machine that comes and goes meets all alike, and no model finds its weights in the processor's
    caches, which in a server the others' would have taken.

    Args:
        files: model -> its ONNX file.
        tokens: length of the text.
        vocab_size: of the tokenizer.
        cores: how many there are.
        progress: see Progress.
    """
    counts = thread_counts(cores)
    keys = [(name, count) for name in files for count in counts]
    sessions = {}
    for done, (name, count) in enumerate(keys):
        progress(f"loading {name}", done, len(keys))
        sessions[name, count] = _session(files[name], count)
    feeds = {name: _feed(sessions[name, counts[0]], tokens, vocab_size) for name in files}
    order, rounds = random.Random(0), list[_Round]()
    for _ in range(_WARM_UP_ROUNDS):
        _round(sessions, feeds, keys)
    until, share, quiet = time.perf_counter() + _ENOUGH_S, free_share(cores), 0
    while quiet < _ROUNDS and (len(rounds) < _ROUNDS or time.perf_counter() < until):
        progress(f"measuring {len(files)} models", quiet, _ROUNDS)
        order.shuffle(keys)
        times, before, share = _round(sessions, feeds, keys), share, free_share(cores)
        rounds.append(_Round(min(before, share), times))
        quiet += min(before, share) >= QUIET
    best = sorted(rounds, key=lambda one: one.free_share, reverse=True)[:_ROUNDS]
    medians = {
        name: {
            count: PartTime(
                *(float(np.median(values)) for values in zip(*(one.times[name, count] for one in best), strict=True))
            )
            for count in counts
        }
        for name in files
    }
    return Measurement(medians, float(np.mean([one.free_share for one in best])))


@dataclass(frozen=True)
class _Round:
    free_share: float
    times: Mapping[_Key, tuple[float, float]]


def _round(
    sessions: Mapping[_Key, onnxruntime.InferenceSession], feeds: Mapping[str, _Feed], keys: Sequence[_Key]
) -> dict[_Key, tuple[float, float]]:
    """Milliseconds of each session, from start to end and on all cores together."""
    times = {}
    for key in keys:
        wall, cpu = time.perf_counter(), time.process_time()
        sessions[key].run(None, feeds[key[0]])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        times[key] = (1e3 * wall, 1e3 * cpu)
    return times


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As our backend serves: threads that spin would count as work here, and take cores from other models there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _feed(session: onnxruntime.InferenceSession, tokens: int, vocab_size: int) -> _Feed:
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
