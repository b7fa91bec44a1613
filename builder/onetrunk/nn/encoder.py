"""The adapter through which all other code reaches an encoder. A family of encoders is one subclass in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerParts:
    """One transformer layer taken apart, as the fold needs it.

    Attributes:
        query: Linear, width -> width, all attention heads side by side.
        key: Linear, width -> width.
        value: Linear, width -> width.
        attention_heads: number of attention heads.
        dropout: dropout on the attention weights.
        finish: output projection, residual, LayerNorm and FFN: ``(context, residual) -> state``, each
            *Shape:* (batch_size, width).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_heads: int
    dropout: nn.Module
    finish: Callable[[Tensor, Tensor], Tensor]


class Encoder(ABC):
    """An encoder's embeddings and layers, whatever its family.

    Attributes:
        family: the ``model_type`` of the Hugging Face configuration.
        embeddings: module of the embeddings.
        layers: the transformer layers, first to last.
        width: size of a hidden state.
        vocab_size: number of token ids.
        max_positions: longest input in tokens.
        pad_token_id: the id that fills a short row.
    """

    family: ClassVar[str]
    embeddings: nn.Module
    layers: nn.ModuleList
    width: int
    vocab_size: int
    max_positions: int
    pad_token_id: int

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Encoder:
        """An encoder of this form with random weights, from a parsed config.json."""

    @abstractmethod
    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over the weights of a checkpoint. Raises KeyError with the names that are missing."""

    @abstractmethod
    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """The state at tap 0.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, tokens, width)
        """

    @staticmethod
    @abstractmethod
    def mask_bias(attention_mask: Tensor, like: Tensor) -> Tensor:
        """What a layer adds to its attention scores: 0 for a token, a very negative number for padding.

        Args:
            attention_mask: ones and zeros. *Shape:* (batch_size, tokens)
            like: a hidden state; gives the dtype.

        Returns:
            *Shape:* (batch_size, 1, 1, tokens)
        """

    @staticmethod
    @abstractmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, mask_bias: Tensor) -> Tensor:
        """One layer, whole. *Shape:* (batch_size, tokens, width), in and out."""

    @staticmethod
    @abstractmethod
    def take_apart(layer: nn.Module) -> LayerParts:
        """The layer's parts, for the fold. They share the layer's parameters."""
