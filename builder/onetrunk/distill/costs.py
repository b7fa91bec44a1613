"""The cost model: measured milliseconds of each part, the cost table on disk, and what a set of heads costs by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.names import LimbId
from onetrunk.protocol.reading import read_regular
from onetrunk.training.runs import MAX_RECORD_BYTES


class HeadShape(Protocol):
    """What a head's cost depends on: where it is attached, how deep it is, and how often it is asked."""

    @property
    def task(self) -> str:
        """The task that it answers."""

    @property
    def tap(self) -> int:
        """The tap that it reads."""

    @property
    def layers(self) -> int:
        """The number of its layers, the folded one included."""

    @property
    def whole_layers(self) -> int:
        """The number of layers that run whole: all but the folded one, or all for a head that answers per token."""

    @property
    def limb(self) -> str:
        """The identity of the limb that it stands on; empty for the trunk itself."""


def trunk_tap(head: HeadShape) -> int:
    """Return the tap of the trunk that a head stands on, itself or by its limb."""
    return LimbId.parse(head.limb).start if head.limb else head.tap


@dataclass(frozen=True)
class Cost:
    """The cost of all tasks together for one text, in milliseconds.

    Attributes:
        trunk_ms: The trunk, once, up to the deepest tap in use.
        heads_ms: All heads.
        overhead_ms: One step for each segment, each limb and each head.
        singles_ms: As many single-task models of the usual kind, for comparison.
        folded_singles_ms: The same, with the last layer of each folded too.
        limbs_ms: The limbs, each once.
    """

    trunk_ms: float
    heads_ms: float
    overhead_ms: float
    singles_ms: float
    folded_singles_ms: float
    limbs_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """The sum of trunk, limbs, heads and overhead."""
        return self.trunk_ms + self.limbs_ms + self.heads_ms + self.overhead_ms

    @property
    def share(self) -> float:
        """The total as a share of single-task models of the usual kind."""
        return self.total_ms / self.singles_ms

    @property
    def folded_share(self) -> float:
        """The total as a share of single-task models whose last layer is folded too."""
        return self.total_ms / self.folded_singles_ms


@dataclass(frozen=True)
class PartCosts:
    """Milliseconds of each part for one text. Parts exclude the step; single-task models include one step each.

    Attributes:
        trunk_ms: Tap -> from token ids up to that tap.
        layer_ms: One whole layer of a head.
        folded_ms: A head of one folded layer, with its output.
        step_ms: One step, which is the overhead of calling one model.
        single_ms: A single-task model of the usual kind: whole encoder, last layer whole, output.
        folded_single_ms: The same with its last layer folded.
        asked: Task -> the share of texts about which it is asked; 1 for a task that is not named.
    """

    trunk_ms: tuple[float, ...]
    layer_ms: float
    folded_ms: float
    step_ms: float
    single_ms: float
    folded_single_ms: float
    asked: Mapping[str, float] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """The number of the trunk's layers."""
        return len(self.trunk_ms) - 1

    def head_ms(self, head: HeadShape) -> float:
        """Return the cost of a head without its step: its whole layers, and a folded one with the output.

        A head that answers per token has no folded layer but a larger output, and is charged a folded layer all the
        same.
        """
        return head.whole_layers * self.layer_ms + self.folded_ms

    def check(self, head: HeadShape) -> None:
        """Check that the trunk has room for a head.

        Raises:
            UserError: It has not.
        """
        if not (head.tap >= 0 and head.layers >= 1 and head.tap + head.layers <= self.depth):
            raise UserError(
                f"a head of {counted(head.layers, 'layer', 'layers')} on tap {head.tap}: the trunk "
                f"that was measured has {self.depth} layers, so tap and layers together are {self.depth} at most"
            )

    def cost(self, heads: Collection[HeadShape]) -> Cost:
        """Return the cost of these heads together.

        The trunk is paid once, up to the deepest tap, and each limb once, like as many whole layers. Every tap and
        every limb in use costs a step; every head costs its whole layers, its folded layer and a step, for the share of
        texts about which its task is asked. Trunk and limbs are charged to every text, which is a little too much where
        the only task that needs one is not asked.

        Raises:
            UserError: There is no head, or one does not fit the trunk.
        """
        if not heads:
            raise UserError("a plan without heads has no cost: give one head at least")
        for head in heads:
            self.check(head)
        taps = {trunk_tap(head) for head in heads}
        shares = [self.asked.get(head.task, 1.0) for head in heads]
        asked = math.fsum(shares)
        limbs = [LimbId.parse(one) for one in {head.limb for head in heads if head.limb}]
        return Cost(
            trunk_ms=self._trunk_ms(taps),
            heads_ms=math.fsum(share * self.head_ms(head) for share, head in zip(shares, heads, strict=True)),
            overhead_ms=(len(taps) + len(limbs) + asked) * self.step_ms,
            singles_ms=asked * self.single_ms,
            folded_singles_ms=asked * self.folded_single_ms,
            limbs_ms=math.fsum((limb.stop - limb.start) * self.layer_ms for limb in limbs),
        )

    def _trunk_ms(self, taps: Collection[int]) -> float:
        deepest = max(taps)
        # The segment above tap 0 reads token ids and computes the embeddings again: see cut_trunk.
        again = self.trunk_ms[0] if deepest and 0 in taps else 0.0
        return self.trunk_ms[deepest] + again


class Quartiles(BaseModel):
    """The median and quartiles of repeated measurements. The unit is in the name of the field that holds them.

    Attributes:
        median: The median.
        low: The lower quartile.
        high: The upper quartile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[Any]) -> Quartiles:
        """Return the quartiles of one or more values."""
        low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
        return cls(median=median, low=low, high=high)


class BucketCosts(BaseModel):
    """The measurements at one padded length and batch size: milliseconds per batch, each of one ONNX Runtime session.

    All figures but ``layer_ms`` include the overhead of calling the session.

    Attributes:
        tokens: The padded length.
        batch_size: The number of texts in a batch.
        trunk_ms: Tap -> from token ids up to that tap.
        layer_ms: One whole layer of a head: heads of two layers minus heads of one, round by round.
        folded_ms: A head of one folded layer, with its output.
        step_ms: A model that does nothing. A server's step costs more, so this is its lower bound.
        single_ms: A single-task model of the usual kind: whole encoder, last layer whole, output.
        folded_single_ms: The same with its last layer folded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    trunk_ms: tuple[Quartiles, ...] = Field(min_length=2)
    layer_ms: Quartiles
    folded_ms: Quartiles
    step_ms: Quartiles
    single_ms: Quartiles
    folded_single_ms: Quartiles

    def per_text(self, step_ms: float | None = None) -> PartCosts:
        """Return the costs for one text, with the step taken out of the parts.

        Args:
            step_ms: The cost of a step per batch in the server that is planned for, where it was measured; None takes
                the step that was measured here, in ONNX Runtime alone.
        """
        here = self.step_ms.median
        step = here if step_ms is None else step_ms

        def without_step(measured: Quartiles) -> float:
            return max(measured.median - here, 0.0) / self.batch_size

        return PartCosts(
            trunk_ms=tuple(without_step(measured) for measured in self.trunk_ms),
            # On a noisy machine the difference may be below 0, but no layer gives time back.
            layer_ms=max(self.layer_ms.median, 0.0) / self.batch_size,
            folded_ms=without_step(self.folded_ms),
            step_ms=step / self.batch_size,
            single_ms=without_step(self.single_ms) + step / self.batch_size,
            folded_single_ms=without_step(self.folded_single_ms) + step / self.batch_size,
        )


class Traffic(BaseModel):
    """What a team asks: how long its texts are, and about which of them each task is asked.

    Attributes:
        source: The name of the file that it was counted in.
        texts: The number of its texts.
        lengths: Padded length in tokens -> the share of texts. Keys are text, as in TOML.
        asked: Task -> the share of texts about which it is asked, in hundredths; at least one hundredth.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    texts: int = Field(ge=1)
    lengths: dict[str, float] = Field(min_length=1)
    asked: dict[str, float]


class CostTable(BaseModel):
    """The measured costs of one trunk on one machine, on disk as JSON.

    Attributes:
        trunk: The trunk's identity.
        machine: The processor.
        versions: Versions of the software that a time depends on.
        threads: The number of ONNX Runtime threads of each session.
        repeats: The number of rounds that every figure was measured in.
        buckets: One entry for each padded length and batch size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: str
    machine: str
    versions: dict[str, str]
    threads: int = Field(ge=1)
    repeats: int = Field(ge=1)
    buckets: tuple[BucketCosts, ...] = Field(min_length=1)

    def by_traffic(self, traffic: Traffic | None) -> PartCosts:
        """Return the costs for one text of a team's own: lengths and tasks count as often as they are asked.

        Args:
            traffic: What is asked; None counts all that was measured alike.

        Raises:
            UserError: The traffic was counted at other lengths than were measured.
        """
        if traffic is None:
            return self.per_text()
        parts = [(share, self.per_text(tokens=int(tokens))) for tokens, share in traffic.lengths.items()]
        return dataclasses.replace(_mean([one for _, one in parts], [share for share, _ in parts]), asked=traffic.asked)

    def per_text(
        self, *, tokens: int | None = None, batch_size: int | None = None, step_ms: float | None = None
    ) -> PartCosts:
        """Return the costs for one text: the unweighted mean over the buckets of this length and batch size.

        Args:
            tokens: The padded length; None takes all.
            batch_size: The number of texts in a batch; None takes all.
            step_ms: See ``BucketCosts.per_text``.

        Raises:
            UserError: No such bucket was measured.
        """
        chosen = [
            bucket.per_text(step_ms)
            for bucket in self.buckets
            if tokens in (None, bucket.tokens) and batch_size in (None, bucket.batch_size)
        ]
        if not chosen:
            known = ", ".join(f"{bucket.tokens} x {bucket.batch_size}" for bucket in self.buckets)
            raise UserError(
                f"tokens {tokens or 'any'}, batch size {batch_size or 'any'}: not in the cost table; it has {known}"
            )
        return _mean(chosen)

    def write(self, path: Path) -> None:
        """Write the table as JSON, atomically.

        Raises:
            OneTrunkError: The file cannot be written.
        """
        atomic_write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """Read a table.

        Raises:
            UserError: The file is missing or is not a cost table.
        """
        try:
            return cls.model_validate_json(read_regular(path, max_bytes=MAX_RECORD_BYTES))
        except FileNotFoundError:
            raise UserError(f"{path}: no such cost table; measure the costs first") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{path}: {where}: {first['msg']}; delete it and measure again") from error


def _mean(costs: Sequence[PartCosts], weights: Sequence[float] | None = None) -> PartCosts:
    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    return PartCosts(
        trunk_ms=tuple(mean(column) for column in zip(*(cost.trunk_ms for cost in costs), strict=True)),
        layer_ms=mean([cost.layer_ms for cost in costs]),
        folded_ms=mean([cost.folded_ms for cost in costs]),
        step_ms=mean([cost.step_ms for cost in costs]),
        single_ms=mean([cost.single_ms for cost in costs]),
        folded_single_ms=mean([cost.folded_single_ms for cost in costs]),
    )
