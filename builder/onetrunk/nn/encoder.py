"""The adapter through which all other code uses an encoder. A family of encoders is one subclass in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_LONGEST_NAME = 40
# The dtype is that of the stored weights, where a trunk computes in fp32; labels are those of a classifier on top; and
# chunks of the feed-forward block, which must divide a text's length, change nothing but memory.
_NOT_OF_THE_ENCODER = {"dtype", "torch_dtype", "num_labels", "id2label", "label2id", "chunk_size_feed_forward"}


@dataclass(frozen=True)
class LayerContext:
    """What layers read beside their hidden state, computed once for all layers. Families add to it.

    Attributes:
        mask_bias: What a layer adds to its attention scores: 0 for tokens, a very negative number for padding.
            *Shape:* (batch_size, 1, 1, tokens)
    """

    mask_bias: Tensor


class SharedParts(nn.Module):
    """The parts of an encoder that all its layers share, and that every file with layers needs: a head has a copy.

    Layers of BERT's form share nothing. Others have the embeddings of relative positions here, the frequencies of
    rotary ones, or a norm after the last layer.
    """

    def prepare(self, attention_mask: Tensor, like: Tensor, *, query_in_front: bool = False) -> LayerContext:
        """Compute what layers read beside their hidden state.

        Args:
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
            like: A hidden state, whose dtype is used.
            query_in_front: Whether the first state is no token but a query, which stands where the first token does.
        """
        return LayerContext(mask_bias(attention_mask, like))

    def close(self, state: Tensor) -> Tensor:
        """Return what an output layer reads: the state after the last layer, normed if the layers only add to it.

        Args:
            state: *Shape:* (..., width)

        Returns:
            *Shape:* (..., width)
        """
        return state


@dataclass(frozen=True)
class LayerParts:
    """A transformer layer taken apart, so that it can be computed for a single query.

    Attributes:
        norm: The norm before the attention; None if the layer norms afterwards. *Shape:* (..., width)
        scores: The scaled and masked attention scores of a query over all tokens, ``(query state, states) -> scores``,
            of normed states. The query stands where the first token does. *Shapes:* (batch_size, width),
            (batch_size, tokens, width), (batch_size, attention_heads, tokens)
        value: The value projection, width -> value_heads * head_size.
        width: The size of a hidden state.
        attention_heads: The number of attention heads.
        value_heads: The same number, or a divisor of it if neighbours share a value head.
        head_size: The size of an attention head.
        dropout: The dropout on the attention weights.
        finish: Output projection, residual, norms and FFN: ``(context, residual) -> state``. The residual is the query
            state before the norm. *Shapes:* (batch_size, attention_heads * head_size),
            (batch_size, width) for the others
    """

    norm: Callable[[Tensor], Tensor] | None
    scores: Callable[[Tensor, Tensor], Tensor]
    value: Projection
    width: int
    attention_heads: int
    value_heads: int
    head_size: int
    dropout: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """A linear layer's parameters, which may be a part of a larger layer's.

    Attributes:
        weight: *Shape:* (outputs, width)
        bias: *Shape:* (outputs,)
    """

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear) -> Projection:
        """Return a whole layer's."""
        return cls(linear.weight, linear.bias)


class Encoder(ABC):
    """An encoder's embeddings and layers, whatever its family.

    Attributes:
        family: The ``model_type`` of the Hugging Face configuration.
        fits_int8: Whether the trunk's states stay close to those of fp32 if it computes in int8.
        embeddings: The module of the embeddings.
        layers: The transformer layers, first to last.
        shared: What the layers share.
        width: The size of a hidden state.
        vocab_size: The number of token ids.
        max_positions: The longest input in tokens.
        pad_token_id: The id that pads short rows.
        token_types: The number of embeddings of token types; 0 if there are none.
    """

    family: ClassVar[str]
    fits_int8: ClassVar[bool] = True
    embeddings: nn.Module
    layers: nn.ModuleList
    shared: SharedParts
    width: int
    vocab_size: int
    max_positions: int
    pad_token_id: int
    token_types: int

    _hf_config: ClassVar[Any]
    _hf_model: ClassVar[Any]
    _hf_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any) -> None:
        # Every exporter and every transformers release supports eager attention.
        self._model = self._hf_model._from_config(config, attn_implementation="eager", **self._hf_options)
        self.width = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_position_embeddings
        self.pad_token_id = config.pad_token_id or 0
        self.token_types = getattr(config, "type_vocab_size", 0)
        self.shared = SharedParts()

    @property
    def reads_types(self) -> bool:
        """Whether the embeddings tell the texts of a pair apart by token types."""
        return self.token_types > 1

    @classmethod
    @abstractmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """Return the number of parameters that a parsed config.json asks for, before any of them is created.

        Raises:
            ValueError: A number in it is missing, or is not one that an encoder can have.
        """

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Encoder:
        """Create an encoder with random weights from a parsed config.json.

        Raises:
            ValueError: It describes a form of the family that is not there.
        """
        cls.check_form(config)
        return cls(cls._hf_config.from_dict({k: v for k, v in config.items() if k not in _NOT_OF_THE_ENCODER}))

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """Refuse a form of the family that would be computed as another one.

        Raises:
            ValueError: It is such a form. The message says what was found and what is allowed.
        """
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type is {positions!r:.{_LONGEST_NAME}}; allowed is 'absolute'")
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if config.get(name):
                raise ValueError(f"{name} is true; allowed are encoders, which read the whole text")
        padding, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
        # PyTorch counts negative ones from the end.
        if padding is not None and not (type(padding) is int and 0 <= padding < (vocabulary or padding + 1)):
            last = f" to {vocabulary - 1}" if vocabulary else ""
            raise ValueError(f"pad_token_id is {padding!r:.{_LONGEST_NAME}}; allowed are ids from 0{last}")
        remote = config.get("auto_map")
        code = remote.get("AutoModel") if isinstance(remote, dict) else None
        if code is not None and str(code).rpartition(".")[2] != cls._hf_model.__name__:
            raise ValueError(
                f"auto_map asks for code of its own ({code!r:.80}), which is never run; "
                f"allowed is transformers' own {cls._hf_model.__name__}"
            )

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

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the hidden state at tap 0, the embeddings.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: Read only if ``reads_types``; None for zeros. *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, tokens, width)
        """
        if token_type_ids is None or not self.reads_types:
            token_type_ids = torch.zeros_like(input_ids)
        embedded: Tensor = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        return embedded

    @staticmethod
    @abstractmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: Any) -> Tensor:
        """Run a whole layer.

        Args:
            layer: One of ``layers``.
            hidden_state: The state below the layer. *Shape:* (batch_size, tokens, width)
            context: What ``shared.prepare`` returned.

        Returns:
            *Shape:* (batch_size, tokens, width)
        """

    @staticmethod
    @abstractmethod
    def take_apart(layer: nn.Module, context: Any) -> LayerParts:
        """Return the layer's parts for the fold. They share the layer's parameters.

        Args:
            layer: One of ``layers``.
            context: What ``shared.prepare`` returned.
        """


def mask_bias(attention_mask: Tensor, like: Tensor) -> Tensor:
    """Return what a layer adds to its attention scores: 0 for tokens, a very negative number for padding.

    Args:
        attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
        like: A hidden state, whose dtype is used.

    Returns:
        *Shape:* (batch_size, 1, 1, tokens)
    """
    return (1.0 - attention_mask[:, None, None, :].to(like.dtype)) * torch.finfo(like.dtype).min


def token_positions(attention_mask: Tensor, *, query_in_front: bool) -> Tensor:
    """Return the position of every state of a text.

    Args:
        attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
        query_in_front: Whether the first state is a query, which stands where the first token does.

    Returns:
        *Shape:* (tokens,)
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.clamp(positions - 1, min=0) if query_in_front else positions


def output_of(layer_result: Any) -> Tensor:
    """Return the state that a layer of `transformers` returns: some return a tuple."""
    state: Tensor = layer_result[0] if isinstance(layer_result, tuple) else layer_result
    return state


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
