"""What each model of a repository costs, with one thread and with more: measured as a server would run it."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.names import ATTENTION_MASK, INPUT_IDS
from onetrunk.repository.quiet import QUIET, free_share

# The first runs allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2
# So many rounds of each number of threads count, the quietest; more turns are taken, within this time, until as many
# were quiet.
_ROUNDS = 7
_ROUNDS_A_TURN = 3
_TURNS = 3
_ENOUGH_S = 20.0
# Up to so many cores every number of threads is tried.
_ALL_UP_TO = 4

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
    files: Mapping[str, Path], tokens: int, vocab_size: int, cores: int, progress: ProgressCallback = silent
) -> Measurement:
    """Medians over some rounds, of which each runs all models in an order of its own.

    A round is about one number of threads. All numbers take turns of a few rounds, in another order each time, so that
    a load on the machine that comes and goes meets all alike; and no model finds its weights in the processor's caches,
    which in a server the others' would have taken.

    A turn loads the models and lets go of them at its end: all together takes the memory of each model once, as a
    server does, however many numbers of threads there are.

    Args:
        files: model -> its ONNX file.
        tokens: length of the text.
        vocab_size: of the tokenizer.
        cores: how many there are.
        progress: see ProgressCallback.
    """
    counts = thread_counts(cores)
    rounds: dict[int, list[_Round]] = {count: [] for count in counts}
    order, turns, until = random.Random(0), 0, time.perf_counter() + _ENOUGH_S
    while turns < _TURNS or (time.perf_counter() < until and not _are_enough(rounds)):
        for done, count in enumerate(order.sample(counts, len(counts))):
            progress(f"measuring {len(files)} models, turn {turns + 1}", done, len(counts))
            rounds[count] += _turn(files, count, tokens, vocab_size, cores, order)
        turns += 1
    best = {count: sorted(rounds[count], key=lambda one: one.free_share, reverse=True)[:_ROUNDS] for count in counts}
    medians = {
        name: {
            count: PartTime(
                *(float(np.median(values)) for values in zip(*(one.times[name] for one in some), strict=True))
            )
            for count, some in best.items()
        }
        for name in files
    }
    return Measurement(medians, float(np.mean([one.free_share for some in best.values() for one in some])))


@dataclass(frozen=True)
class _Round:
    free_share: float
    times: Mapping[str, tuple[float, float]]


def _are_enough(rounds: Mapping[int, list[_Round]]) -> bool:
    return all(sum(one.free_share >= QUIET for one in some) >= _ROUNDS for some in rounds.values())


def _turn(
    files: Mapping[str, Path], threads: int, tokens: int, vocab_size: int, cores: int, order: random.Random
) -> list[_Round]:
    """A few rounds of all models with one number of threads."""
    sessions = {name: _session(file, threads) for name, file in files.items()}
    feeds = {name: _feed(session, tokens, vocab_size) for name, session in sessions.items()}
    for _ in range(_WARM_UP_ROUNDS):
        _times(sessions, feeds)
    rounds, share = [], free_share(cores)
    for _ in range(_ROUNDS_A_TURN):
        shuffled = dict(order.sample(sorted(sessions.items()), len(sessions)))
        times, before, share = _times(shuffled, feeds), share, free_share(cores)
        rounds.append(_Round(min(before, share), times))
    return rounds


def _times(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Mapping[str, _Feed]
) -> dict[str, tuple[float, float]]:
    """Milliseconds of each session, in this order, from start to end and on all cores together."""
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
