"""Measuring what the parts of a repository cost on this machine: milliseconds, not layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from onetrunk.distill.cost_table import BucketCosts, CostTable
from onetrunk.distill.sessions import (
    Files,
    Session,
    check_rounds,
    time_in_turn,
    token_batch,
    versions,
)
from onetrunk.distill.spread import Spread
from onetrunk.machine import processor_name
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import HIDDEN_STATE


def measure_costs(
    trunk: Trunk,
    *,
    tokens: Sequence[int] = (32, 64, 128),
    batch_size: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 30,
    progress: ProgressCallback = silent,
) -> CostTable:
    """Times the ONNX files that ``build-repo`` writes, in ONNX Runtime, part by part.

    Measured are the trunk up to each tap, one whole head layer, a head of one folded layer, one call of a model, and
    single-task models. Queries other than [CLS] cost a few vectors more, and are counted alike. All sessions are in
    memory together: for a trunk of N layers about N / 2 times its weights.

    Args:
        trunk: the trunk; its weights are taken as they are.
        tokens: padded lengths.
        batch_size: batch sizes.
        threads: ONNX Runtime's threads for each session, the trunk's and the heads'.
        repeats: rounds; figures are medians over them.
        progress: told after every round.

    Raises:
        UserError: the trunk has one layer only, does not read that many tokens, or a number is not from 1.
    """
    check_rounds(threads, repeats)
    if trunk.depth < 2:
        raise UserError("a trunk of one layer leaves nothing to plan: one of 2 layers or more is needed")
    buckets = [(length, size) for length in tokens for size in batch_size]
    if not buckets:
        raise UserError("no padded length or no batch size to measure: give one of each at least")
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, len(buckets) * repeats)

    with tempfile.TemporaryDirectory(prefix="onetrunk-costs-") as folder:
        sessions = _open_all(Files(trunk, Path(folder)), threads)
        measured = [
            _measure(trunk, sessions, length, size, repeats, partial(tell, f"costs at {length} tokens x {size}"))
            for length, size in buckets
        ]
    return CostTable(
        trunk=trunk.identity,
        machine=processor_name(),
        versions=versions(),
        threads=threads,
        repeats=repeats,
        buckets=tuple(measured),
    )


def _open_all(files: Files, threads: int) -> dict[str, Session]:
    paths = {f"tap {tap}": files.segment(0, tap) for tap in range(files.trunk.depth + 1)}
    paths |= {
        "one layer": files.head(0, 1),
        "two layers": files.head(0, 2),
        "step": files.step(),
        "single": files.single(whole=True),
        "folded single": files.single(whole=False),
    }
    return {name: Session(path, threads) for name, path in paths.items()}


def _measure(
    trunk: Trunk,
    sessions: dict[str, Session],
    tokens: int,
    batch_size: int,
    repeats: int,
    after_round: Callable[[], None],
) -> BucketCosts:
    arrays = token_batch(trunk, tokens, batch_size)
    arrays[HIDDEN_STATE] = sessions["tap 0"].run(arrays)
    times = time_in_turn(
        {name: partial(session.run, arrays) for name, session in sessions.items()}, repeats, after_round
    )
    return BucketCosts(
        tokens=tokens,
        batch_size=batch_size,
        trunk_ms=tuple(Spread.of(times[f"tap {tap}"]) for tap in range(trunk.depth + 1)),
        layer_ms=Spread.of(times["two layers"] - times["one layer"]),
        folded_ms=Spread.of(times["one layer"]),
        step_ms=Spread.of(times["step"]),
        single_ms=Spread.of(times["single"]),
        folded_single_ms=Spread.of(times["folded single"]),
    )
