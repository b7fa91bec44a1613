"""The adapter through which all other code uses an encoder. A family of encoders is one subclass in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerParts:
    """The parts of a transformer layer that the fold uses.

    Attributes:
        query: The query projection, width -> width, for all attention heads together.
        key: The key projection, width -> width.
        value: The value projection, width -> width.
        attention_heads: The number of attention heads.
        dropout: The dropout on the attention weights.
        finish: Output projection, residual, LayerNorm and FFN: ``(context, residual) -> state``. *Shape of each:*
            (batch_size, width)
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
        family: The ``model_type`` of the Hugging Face configuration.
        embeddings: The module of the embeddings.
        layers: The transformer layers, first to last.
        width: The size of a hidden state.
        vocab_size: The number of token ids.
        max_positions: The longest input in tokens.
        pad_token_id: The id that pads short rows.
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
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """Return the number of parameters that a parsed config.json asks for, before any of them is created.

        Raises:
            ValueError: A number in it is missing, or is not one that an encoder can have.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Encoder:
        """Create an encoder with random weights from a parsed config.json."""

    @abstractmethod
    def load(self, weights: dict[str, Tensor]) -> None:
        """Load the weights of a checkpoint.

        Raises:
            KeyError: Weights are missing; its argument names them.
            RuntimeError: There are weights that the configuration has no place for.
        """

    @abstractmethod
    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the hidden state at tap 0, the embeddings.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, tokens, width)
        """

    @staticmethod
    @abstractmethod
    def mask_bias(attention_mask: Tensor, like: Tensor) -> Tensor:
        """Return what a layer adds to its attention scores: 0 for tokens, a very negative number for padding.

        Args:
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
            like: A hidden state, whose dtype is used.

        Returns:
            *Shape:* (batch_size, 1, 1, tokens)
        """

    @staticmethod
    @abstractmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, mask_bias: Tensor) -> Tensor:
        """Run a whole layer.

        Args:
            layer: One of ``layers``.
            hidden_state: The state below the layer. *Shape:* (batch_size, tokens, width)
            mask_bias: What ``mask_bias`` returned. *Shape:* (batch_size, 1, 1, tokens)

        Returns:
            *Shape:* (batch_size, tokens, width)
        """

    @staticmethod
    @abstractmethod
    def take_apart(layer: nn.Module) -> LayerParts:
        """Return the layer's parts for the fold. They share the layer's parameters."""
