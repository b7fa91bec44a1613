"""What the parts of a forward pass cost, and what a set of heads then costs. Arithmetic only; costs.py measures."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from onetrunk.protocol.errors import UserError


class Standing(Protocol):
    """Where a head stands, and how deep it is. Options and planned heads have both."""

    @property
    def tap(self) -> int:
        """Its tap."""

    @property
    def layers(self) -> int:
        """Its layers, the folded one among them."""

    @property
    def whole_layers(self) -> int:
        """Those of them that run whole: all but the folded one, or all, where it answers for every token."""


@dataclass(frozen=True)
class Cost:
    """What all tasks together cost for one text, in milliseconds.

    Attributes:
        trunk_ms: the trunk, once, up to the deepest tap in use.
        heads_ms: all heads.
        overhead_ms: a step for each segment and each head.
        singles_ms: as many single-task models of the usual kind, which this is to be compared with.
        folded_singles_ms: the same, their last layer folded too.
    """

    trunk_ms: float
    heads_ms: float
    overhead_ms: float
    singles_ms: float
    folded_singles_ms: float

    @property
    def total_ms(self) -> float:
        """All parts."""
        return self.trunk_ms + self.heads_ms + self.overhead_ms

    @property
    def share(self) -> float:
        """The share of what single-task models of the usual kind cost."""
        return self.total_ms / self.singles_ms

    @property
    def folded_share(self) -> float:
        """The share of what single-task models would cost if their last layer were folded too."""
        return self.total_ms / self.folded_singles_ms


@dataclass(frozen=True)
class Rates:
    """Milliseconds for one text, of each part. Parts are without a step; single-task models take one step each.

    Attributes:
        trunk_ms: tap -> token ids up to that tap.
        layer_ms: one whole layer of a head.
        folded_ms: a head of one folded layer, with its output.
        step_ms: calling one model.
        single_ms: a single-task model of the usual kind: whole encoder, last layer whole, output; and its step.
        folded_single_ms: the same with its last layer folded.
    """

    trunk_ms: tuple[float, ...]
    layer_ms: float
    folded_ms: float
    step_ms: float
    single_ms: float
    folded_single_ms: float

    @property
    def depth(self) -> int:
        """The trunk's layers, and so its deepest tap."""
        return len(self.trunk_ms) - 1

    def head_ms(self, head: Standing) -> float:
        """A head without its step: its whole layers, and a folded one with the output.

        A head that answers for every token has no folded layer, but a larger output: it is counted as one all the same.
        """
        return head.whole_layers * self.layer_ms + self.folded_ms

    def check(self, head: Standing) -> None:
        """Raises UserError where the trunk has no room for such a head."""
        if not (head.tap >= 0 and head.layers >= 1 and head.tap + head.layers <= self.depth):
            raise UserError(
                f"a head of {head.layers} layers on tap {head.tap}: the trunk that was measured has {self.depth} "
                f"layers, so tap and layers together are {self.depth} at most"
            )

    def cost(self, heads: Collection[Standing]) -> Cost:
        """What these heads cost together.

        The trunk is paid once, up to the deepest tap; every tap in use costs a step, every head its whole layers, its
        folded layer and a step.

        Raises:
            UserError: there is no head, or one does not fit the trunk.
        """
        if not heads:
            raise UserError("a plan without heads has no cost: give one head at least")
        for head in heads:
            self.check(head)
        taps = {head.tap for head in heads}
        return Cost(
            trunk_ms=self._trunk_ms(taps),
            heads_ms=math.fsum(self.head_ms(head) for head in heads),
            overhead_ms=(len(taps) + len(heads)) * self.step_ms,
            singles_ms=len(heads) * self.single_ms,
            folded_singles_ms=len(heads) * self.folded_single_ms,
        )

    def _trunk_ms(self, taps: Collection[int]) -> float:
        deepest = max(taps)
        # The segment above tap 0 reads token ids and embeds them again: names.cut_trunk says why.
        again = self.trunk_ms[0] if deepest and 0 in taps else 0.0
        return self.trunk_ms[deepest] + again
