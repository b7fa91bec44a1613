"""The adapter through which all other code uses an encoder. A family of encoders is one subclass in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    _model: PreTrainedModel

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

    def load(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the weights of a checkpoint, of whatever model that has such an encoder.

        Names may carry the prefix that the encoder has in larger models, and LayerNorms their names of before 2019.

        Args:
            weights: Name -> tensor, of any floating-point dtype.

        Returns:
            The names of what belongs to other parts than the encoder, such as a pooler or a classifier, and was left
            out.

        Raises:
            KeyError: Weights are missing; its argument names them.
            RuntimeError: There are weights that the configuration has no place for, or of another shape or dtype.
        """
        own = self._model.state_dict()
        buffers = {name for name, _ in self._model.named_buffers()}
        parts = {name for name, _ in self._model.named_children()}
        found: dict[str, Tensor] = {}
        left_out, no_place = [], []
        for full_name, tensor in weights.items():
            name = _present_name(full_name.removeprefix(f"{self._model.base_model_prefix}."))
            if name in own:
                _check_tensor(name, tensor, own[name], twice=name in found)
                found[name] = tensor
            elif name.partition(".")[0] not in parts:
                left_out.append(full_name)
            elif name not in buffers:
                # For example weights for more layers than config.json has: it would run, as a different model.
                no_place.append(name)
        if missing := own.keys() - found.keys():
            raise KeyError(", ".join(sorted(missing)[:3]))
        if no_place:
            raise RuntimeError(f"config.json has no place for {', '.join(no_place[:3])}")
        self._model.load_state_dict(found)
        return tuple(left_out)

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


def _present_name(name: str) -> str:
    """Return a parameter's name as it is today: LayerNorms once had a gamma and a beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name


def _check_tensor(name: str, found: Tensor, own: Tensor, *, twice: bool) -> None:
    if twice:
        raise RuntimeError(f"{name} is there twice, with a prefix and without")
    if found.shape != own.shape:
        raise RuntimeError(f"{name} has the shape {tuple(found.shape)}, and config.json asks for {tuple(own.shape)}")
    if not found.is_floating_point():
        raise RuntimeError(f"{name} is {found.dtype}: quantised weights are not read")
