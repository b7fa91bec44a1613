"""A sentence embedding as a head without layers: the mean of a text's states at a tap of the trunk."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from onetrunk.nn.encoder import SharedParts
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol import __version__
from onetrunk.protocol.head_json import LongTexts
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds.embedding import EMBEDDING

DEFAULT_TASK = "embedding"
"""The task that an embedding is served as, unless a bundle gives it another name."""

EmbeddingTap = int | Literal["last"]
"""The tap whose states are averaged; ``last`` is the trunk's last layer."""


class MeanHead(nn.Module):
    """A head without weights, whose raw outputs are the mean of the states of all tokens but padding.

    Attributes:
        output: None: there is no output layer.
    """

    output: None = None

    def __init__(self, closing: SharedParts | None = None) -> None:
        """Create the head.

        Args:
            closing: What the trunk's layers share, if the head reads the state after the last: some close with a norm.
        """
        super().__init__()
        self.closing = closing

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean state.

        Args:
            hidden_state: The trunk's hidden state at the head's tap. *Shape:* (batch_size, tokens, width)
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, width)
        """
        if self.closing is not None:
            hidden_state = self.closing.close(hidden_state)
        real = attention_mask[..., None].to(hidden_state.dtype)
        return (hidden_state * real).sum(dim=1) / real.sum(dim=1)

    def forward_whole(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the same, since there is no layer to fold. Shapes are those of ``forward``."""
        return self(hidden_state, attention_mask)  # type: ignore[no-any-return]


def embedding_spec(trunk: Trunk, tap: EmbeddingTap = "last", long_texts: LongTexts = "cut") -> HeadSpec:
    """Return the ``head.json`` of an embedding, which is all that a bundle of this kind holds.

    Args:
        trunk: The trunk.
        tap: The tap.
        long_texts: What is read of a text that is longer than the server's longest.

    Raises:
        UserError: The trunk has no such tap.
    """
    tap = trunk.depth if tap == "last" else tap
    trunk.check_tap(tap)
    return HeadSpec(
        task=DEFAULT_TASK,
        kind=EMBEDDING.name,
        form="single",
        tap=tap,
        layers=0,
        query="mean",
        trunk=trunk.identity,
        width=trunk.width,
        max_length=trunk.max_positions,
        long_texts=long_texts,
        metric=EMBEDDING.metrics[0],
        scores={},
        created="",
        onetrunk_version=__version__,
    )
