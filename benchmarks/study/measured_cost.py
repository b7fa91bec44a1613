"""The cost of a plan measured directly: all its models against as many single-task models, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from onetrunk.distill.cost_measurement import (
    Arrays,
    ModelFiles,
    Session,
    check_repeats,
    clock_of,
    count_rounds,
    software_versions,
    time_interleaved,
    token_batch,
)
from onetrunk.distill.costs import Quartiles
from onetrunk.files import atomic_write_text
from onetrunk.machine import processor_name
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import HIDDEN_STATE, cut_trunk, hidden_name


class BucketShare(BaseModel):
    """The measurements at one padded length and batch size, in milliseconds per batch.

    Attributes:
        tokens: The padded length.
        batch_size: The number of texts in a batch.
        plan_ms: All segments and heads, one after another.
        singles_ms: As many single-task models of the usual kind, one after another.
        folded_singles_ms: The same, with the last layer of each folded too.
        share: The plan over the single-task models, round by round.
        folded_share: The plan over those with folded layers, round by round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    batch_size: int
    plan_ms: Quartiles
    singles_ms: Quartiles
    folded_singles_ms: Quartiles
    share: Quartiles
    folded_share: Quartiles


class MeasuredCost(BaseModel):
    """The measured cost of a plan's models, on disk as JSON.

    Attributes:
        trunk: The trunk's identity.
        machine: The processor.
        versions: Versions of the software that a time depends on.
        threads: The number of ONNX Runtime threads of each session.
        repeats: The number of rounds.
        heads: Tap, layers and query of each head.
        rows: One entry for each padded length and batch size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: str
    machine: str
    versions: dict[str, str]
    threads: int
    repeats: int
    heads: tuple[tuple[int, int, Query], ...]
    rows: tuple[BucketShare, ...]

    @property
    def share(self) -> float:
        """The plan's cost as a share of single-task models: the mean over the rows of their medians."""
        return sum(row.share.median for row in self.rows) / len(self.rows)

    @property
    def against_one(self) -> float:
        """The throughput of the whole plan as a share of one single-task model's: the mean over the rows."""
        ratios = [row.singles_ms.median / len(self.heads) / row.plan_ms.median for row in self.rows]
        return sum(ratios) / len(ratios)

    @property
    def folded_share(self) -> float:
        """The same against single-task models whose last layer is folded too."""
        return sum(row.folded_share.median for row in self.rows) / len(self.rows)

    @property
    def share_range(self) -> tuple[float, float]:
        """The least and the greatest median share of a row."""
        shares = [row.share.median for row in self.rows]
        return min(shares), max(shares)

    @classmethod
    def read(cls, path: Path) -> MeasuredCost:
        """Read a measurement.

        Raises:
            UserError: The file is missing or malformed.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{path}: no measured share: {first}; remove it and run python -m benchmarks.study cost"
            ) from error

    def write(self, path: Path) -> None:
        """Write the measurement as JSON, atomically.

        Raises:
            OneTrunkError: The file cannot be written.
        """
        atomic_write_text(path, self.model_dump_json(indent=2) + "\n")


def measure_plan_cost(
    heads: Iterable[tuple[int, int, Query]],
    trunk: Trunk,
    *,
    tokens: Sequence[int] = (32, 64, 128),
    batch_size: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 30,
    limbs: Mapping[tuple[int, int], Sequence[tuple[int, int, Query]]] | None = None,
    progress: ProgressCallback = silent,
) -> MeasuredCost:
    """Time a plan's models, as they would be served, against single-task models on the same token batches.

    The plan is the trunk cut at the taps in use and one session for each head. It is compared with as many sessions
    of a whole encoder with an output, each with its own weights in memory. Outputs are random (seeded) and layers are
    the trunk's own, since times do not depend on weights. What a server adds to each call is not included.

    Args:
        heads: Tap, layers and query of each head on the trunk.
        trunk: The trunk.
        tokens: The padded lengths.
        batch_size: The batch sizes.
        threads: The number of ONNX Runtime threads of each session.
        repeats: The number of rounds.
        limbs: From and to which tap a limb reaches -> tap, layers and query of each head on it.
        progress: Called after every round.

    Raises:
        UserError: There is no head, one does not fit the trunk, the trunk does not read that many tokens, or a number
            is less than 1.
    """
    check_repeats(threads, repeats)
    on_trunk, on_limbs = tuple(heads), dict(limbs or {})
    heads = (*on_trunk, *(head for some in on_limbs.values() for head in some))
    buckets = [(length, size) for length in tokens for size in batch_size]
    if not heads or not buckets:
        raise UserError("nothing to measure: give one head, one padded length and one batch size at least")
    count_round = count_rounds(progress, len(buckets) * repeats)
    with tempfile.TemporaryDirectory(prefix="onetrunk-share-") as folder:
        files = ModelFiles(trunk, Path(folder))
        chain = _Chain(files, on_trunk, on_limbs, threads)
        singles = [Session(files.single(whole=True), threads) for _ in heads]
        folded = [Session(files.single(whole=False), threads) for _ in heads]
        rows = [
            _measure(
                token_batch(trunk, length, size),
                {"plan": chain.run, "singles": partial(_run_all, singles), "folded": partial(_run_all, folded)},
                repeats,
                count_round(f"share at {length} tokens x {size}"),
                clock_of(threads),
            )
            for length, size in buckets
        ]
    return MeasuredCost(
        trunk=trunk.identity,
        machine=processor_name(),
        versions=software_versions(),
        threads=threads,
        repeats=repeats,
        heads=heads,
        rows=tuple(rows),
    )


class _Chain:
    """The sessions of a plan: the trunk cut at the taps in use, limbs on them, and the heads."""

    def __init__(
        self,
        files: ModelFiles,
        heads: Sequence[tuple[int, int, Query]],
        limbs: Mapping[tuple[int, int], Sequence[tuple[int, int, Query]]],
        threads: int,
    ) -> None:
        segments = cut_trunk({tap for tap, _, _ in heads} | {start for start, _ in limbs})
        read = [(hidden_name(tap), (tap, layers, query)) for tap, layers, query in heads]
        read += [(_limb_state(limb), head) for limb, some in limbs.items() for head in some]
        # Heads first: they are what a plan may have wrong.
        self.heads = [(state, Session(files.head(*head), threads)) for state, head in read]
        self.segments = [Session(files.segment(segment.start, segment.stop), threads) for segment in segments]
        # A limb costs what the trunk's layers of its place cost.
        self.limbs = {_limb_state(limb): Session(files.segment(*limb), threads) for limb in limbs}

    def run(self, arrays: Arrays) -> None:
        tensors = dict(arrays)
        for segment in self.segments:
            tensors[segment.output] = segment.run(tensors)
        for state, limb in self.limbs.items():
            tensors[state] = limb.run(tensors)
        for state, head in self.heads:
            tensors[HIDDEN_STATE] = tensors[state]
            head.run(tensors)


def _limb_state(limb: tuple[int, int]) -> str:
    return "limb {} to {}".format(*limb)


def _run_all(sessions: Sequence[Session], arrays: Arrays) -> None:
    for session in sessions:
        session.run(arrays)


def _measure(
    arrays: Arrays,
    runs: dict[str, Callable[[Arrays], None]],
    repeats: int,
    after_round: Callable[[], None],
    clock: Callable[[], float],
) -> BucketShare:
    times = time_interleaved({name: partial(run, arrays) for name, run in runs.items()}, repeats, after_round, clock)
    batch_size, tokens = next(iter(arrays.values())).shape
    return BucketShare(
        tokens=tokens,
        batch_size=batch_size,
        plan_ms=Quartiles.of(times["plan"]),
        singles_ms=Quartiles.of(times["singles"]),
        folded_singles_ms=Quartiles.of(times["folded"]),
        share=Quartiles.of(times["plan"] / times["singles"]),
        folded_share=Quartiles.of(times["plan"] / times["folded"]),
    )
