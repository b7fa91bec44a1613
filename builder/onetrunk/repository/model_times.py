"""The time that each model of a repository takes, by its number of threads, measured as a server would run it."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import hashlib
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onetrunk.export.sessions import load_session
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.names import ATTENTION_MASK, INPUT_IDS

IDLE = 0.9
"""From this idle fraction on, the machine counts as free of CPU contention."""

_PROBE_S = 0.02
# About a millisecond of hashing, during which Python lets other threads run.
_ITERATIONS = 1000

# The first runs allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2
# This many rounds per number of threads are used, those with the least contention. Further turns are taken, within the
# time limit, until as many were free of contention.
_ROUNDS = 7
_ROUNDS_PER_TURN = 3
_TURNS = 3
_TIME_LIMIT_S = 20.0
# Every number of threads up to this one is tried.
_ALL_UP_TO = 4

_Feed = dict[str, NDArray[Any]]

_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class ModelTime:
    """The time that a model takes for one text, with one number of threads.

    Attributes:
        wall_ms: The wall-clock time.
        cpu_ms: The processor time on all cores together.
    """

    wall_ms: float
    cpu_ms: float


ModelTimes = Mapping[str, Mapping[int, ModelTime]]
"""Model -> number of threads -> time for one text."""


@dataclass(frozen=True)
class Measurement:
    """The measured times and the conditions under which they were measured.

    Attributes:
        times: Model -> number of threads -> time for one text.
        idle_fraction: The fraction of the cores' time that other programs left.
    """

    times: ModelTimes
    idle_fraction: float


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to try, none above the number of cores: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    steps = [*range(1, _ALL_UP_TO + 1), *(n << k for k in range(1, 16) for n in (3, 4))]
    return sorted({step for step in steps if step < cores} | {cores})


def measure_models(
    files: Mapping[str, Path], tokens: int, vocab_size: int, cores: int, progress: ProgressCallback = silent
) -> Measurement:
    """Measure each model with each number of threads, as medians over several rounds.

    A round runs all models once, in random order, with one number of threads. The numbers of threads take turns of a
    few rounds, so that a load on the machine that comes and goes affects all of them alike. No model finds its weights
    in the processor's caches, since the other models' weights displace them, as in a server.

    A turn loads the models and releases them at its end. So at any time the memory of each model is needed only once,
    as in a server, however many numbers of threads there are.

    Args:
        files: Model -> its ONNX file.
        tokens: The length of the text.
        vocab_size: The size of the tokenizer's vocabulary.
        cores: The number of cores.
        progress: Called before each turn.

    Returns:
        The medians, and how idle the machine was.
    """
    counts = thread_counts(cores)
    rounds: dict[int, list[_Round]] = {count: [] for count in counts}
    order, turns, until = random.Random(0), 0, time.perf_counter() + _TIME_LIMIT_S
    while turns < _TURNS or (time.perf_counter() < until and not _are_enough(rounds)):
        for done, count in enumerate(order.sample(counts, len(counts))):
            progress(f"measuring {len(files)} models, turn {turns + 1}", done, len(counts))
            rounds[count] += _turn(files, count, tokens, vocab_size, cores, order)
        turns += 1
    best = {count: sorted(rounds[count], key=lambda one: one.idle_fraction, reverse=True)[:_ROUNDS] for count in counts}
    medians = {
        name: {
            count: ModelTime(
                *(float(np.median(values)) for values in zip(*(one.times[name] for one in some), strict=True))
            )
            for count, some in best.items()
        }
        for name in files
    }
    return Measurement(medians, float(np.mean([one.idle_fraction for some in best.values() for one in some])))


@dataclass(frozen=True)
class _Round:
    idle_fraction: float
    times: Mapping[str, tuple[float, float]]


def _are_enough(rounds: Mapping[int, list[_Round]]) -> bool:
    return all(sum(one.idle_fraction >= IDLE for one in some) >= _ROUNDS for some in rounds.values())


def _turn(
    files: Mapping[str, Path], threads: int, tokens: int, vocab_size: int, cores: int, order: random.Random
) -> list[_Round]:
    """Run a few rounds of all models with one number of threads."""
    sessions = {name: _session(file, threads) for name, file in files.items()}
    feeds = {name: _feed(session, tokens, vocab_size) for name, session in sessions.items()}
    for _ in range(_WARM_UP_ROUNDS):
        _times(sessions, feeds)
    rounds, idle = [], idle_fraction(cores)
    for _ in range(_ROUNDS_PER_TURN):
        shuffled = dict(order.sample(sorted(sessions.items()), len(sessions)))
        times, before, idle = _times(shuffled, feeds), idle, idle_fraction(cores)
        rounds.append(_Round(min(before, idle), times))
    return rounds


def _times(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Mapping[str, _Feed]
) -> dict[str, tuple[float, float]]:
    """Return the wall-clock and the processor time of each session in ms, run in this order."""
    times = {}
    for name, session in sessions.items():
        wall, cpu = time.perf_counter(), time.process_time()
        session.run(None, feeds[name])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        times[name] = (1e3 * wall, 1e3 * cpu)
    return times


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As in the served backend: spinning threads would count as work here, and take cores from other models there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return load_session(file, options)


def _feed(session: onnxruntime.InferenceSession, tokens: int, vocab_size: int) -> _Feed:
    """Return the inputs for one random text without padding. *Shape of each:* (1, tokens, ...)."""
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


def idle_fraction(cores: int) -> float:
    """Measure the fraction of all cores' time that is available: 1 without other programs.

    One busy thread per core measures how much processor time it gets. The system's own figures are of no use in
    containers and sandboxes, where they often describe another machine.
    """
    with ThreadPoolExecutor(cores) as pool:
        shares = list(pool.map(_work, range(cores)))
    return sum(got for got, _ in shares) / sum(passed for _, passed in shares)


def _work(_: int) -> tuple[float, float]:
    """Return the seconds computed and the seconds passed."""
    began, computed = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < _PROBE_S:
        hashlib.pbkdf2_hmac("sha256", b"", b"", _ITERATIONS)
    return time.thread_time() - computed, time.perf_counter() - began
