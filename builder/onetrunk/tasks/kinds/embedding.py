"""Embedding: a text's mean state at a tap, of length 1. Its head has no layers and no weights, so nothing trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.kinds.base import (
    AnswerSpec,
    Kind,
    KindConfig,
    LabelCodec,
    Offsets,
    OutputSpec,
    Scores,
    TrainingSpec,
)

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

_UNTRAINED = "an embedding has no labels and is not trained: build-repo --embed and deploy-head --embed serve it"


class EmbeddingCodec(LabelCodec):
    """There are no labels."""

    def encode(self, label: object, config: KindConfig, text: str = "") -> NoReturn:
        """Refuse the label.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_UNTRAINED)

    def targets(self, encoded: Sequence[Any], config: KindConfig, offsets: Offsets | None = None) -> NDArray[Any]:
        """Return the targets of no rows, since no row has a label.

        Raises:
            ValueError: There are rows.
        """
        if encoded:
            raise ValueError(_UNTRAINED)
        return np.empty((0,), dtype=np.float32)


class EmbeddingTraining(TrainingSpec):
    """There is nothing to train."""

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> NoReturn:
        """Refuse to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_UNTRAINED)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> NoReturn:
        """Refuse to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_UNTRAINED)


class EmbeddingOutput(OutputSpec):
    """The pooled state, scaled to length 1."""

    def check(self, config: KindConfig) -> None:
        """Check that the width of the trunk is known, as it is to a head, but not to a task file.

        Raises:
            ValueError: It is not.
        """
        self.num_outputs(config)

    def num_outputs(self, config: KindConfig) -> int:
        """Return the width of the trunk.

        Raises:
            ValueError: The configuration has none.
        """
        width = getattr(config, "width", None)
        if not isinstance(width, int):
            raise ValueError(_UNTRAINED)
        return width

    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return the vector of length 1. *Shape:* (batch_size, width)."""
        from torch.nn import functional

        return functional.normalize(raw, dim=-1)

    def client_info(self, config: KindConfig) -> dict[str, Any]:
        """Return the size of the vector, and that nobody who asks every task wants it."""
        return {"width": self.num_outputs(config), "on_request": True}

    def describe(self, config: KindConfig) -> str:
        """Name the size."""
        return f"a vector of {self.num_outputs(config)} numbers, of length 1"


class EmbeddingAnswers(AnswerSpec):
    """Two embeddings of a text are compared by their cosine."""

    agreement_measure: ClassVar[Literal["share", "correlation"]] = "correlation"

    def predictions(self, scores: Scores, config: KindConfig) -> Scores:
        """Return the vectors."""
        return scores

    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return the first numbers of the vector."""
        return f"[{', '.join(f'{number:.3f}' for number in scores[:3])}, ...]"

    def agreement(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> float | None:
        """See `AnswerSpec.agreement`: the mean cosine."""
        return float(1 - self.distance(first, second, config).mean())

    def distance(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> NDArray[np.float32]:
        """See `AnswerSpec.distance`: 1 less the cosine of each text's vectors."""
        found: NDArray[np.float32] = (1 - (first * second).sum(axis=-1)).astype(np.float32)
        return found


EMBEDDING = Kind(
    name="embedding",
    codec=EmbeddingCodec(),
    training=EmbeddingTraining(),
    output=EmbeddingOutput(),
    answers=EmbeddingAnswers(),
    metrics=("cosine",),
    forms=("single",),
    has_weights=False,
)
