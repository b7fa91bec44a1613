"""A whole encoder with an output layer: what full fine-tuning trains, and one ordinary model per task."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.trunk import Trunk


class WholeModel(nn.Module):
    """Trainable embeddings, all layers and an output layer. The last layer runs folded, as in a head.

    Attributes:
        embeddings: The encoder's embeddings.
        head: All layers of the encoder, as a head on tap 0.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self._embed = encoder.embed
        self.embeddings = encoder.embeddings
        self.head = head

    @property
    def output(self) -> nn.Linear:
        """The output layer."""
        return self.head.output

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return raw outputs.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: *Shape:* (batch_size, tokens)
            attention_mask: *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, outputs)
        """
        raw: Tensor = self.head(self._embed(input_ids, token_type_ids), attention_mask)
        return raw


def new_whole_model(trunk: Trunk, *, outputs: int | nn.Linear, vocabulary: Tensor | None = None) -> WholeModel:
    """Create a copy of the whole trunk to be fine-tuned, with a new output layer from torch's global generator.

    Args:
        trunk: The trunk to start from.
        outputs: The number of outputs, or the output layer of a kind.
        vocabulary: The token ids that occur in training; None for all. Embeddings of other tokens have no gradient, so
            training is the same without them, and most of an optimizer step would be spent on them.
            *Shape:* (token ids,)
    """
    encoder = copy.deepcopy(trunk.encoder)
    encoder.embeddings.requires_grad_(True)
    if vocabulary is not None:
        _keep_tokens(encoder.embeddings, trunk.vocab_size, _kept(trunk, vocabulary))
    head = new_head(trunk, outputs=outputs, tap=0, layers=trunk.depth)
    return WholeModel(encoder, head).train()


def trained_whole_model(
    trunk: Trunk, *, outputs: int | nn.Linear, vocabulary: Tensor, weights: Mapping[str, Tensor]
) -> WholeModel:
    """Restore a model that was trained with a part of the vocabulary: in evaluation mode, with all of it.

    Args:
        trunk: The trunk that it started from, which provides the embeddings of the other tokens.
        outputs: The number of outputs, or the output layer of a kind.
        vocabulary: The token ids that it was trained with. *Shape:* (token ids,)
        weights: The trained weights by name.
    """
    model, kept = new_whole_model(trunk, outputs=outputs), _kept(trunk, vocabulary)
    whole = model.state_dict()
    for name, tensor in weights.items():
        if tensor.shape == whole[name].shape:
            whole[name] = tensor
        else:
            whole[name][kept] = tensor
    model.load_state_dict(whole)
    return model.eval().requires_grad_(False)


def _kept(trunk: Trunk, vocabulary: Tensor) -> Tensor:
    """Return the token ids whose embeddings are kept, in the order of their rows. *Shape:* (kept,)."""
    kept: Tensor = torch.unique(torch.cat([vocabulary, torch.tensor([trunk.pad_token_id])]))
    return kept


def _keep_tokens(embeddings: nn.Module, vocab_size: int, kept: Tensor) -> None:
    """Leave the rows of these tokens in the embeddings, which still read token ids: positions may depend on them.

    Args:
        embeddings: The embeddings, which are changed.
        vocab_size: The number of token ids.
        kept: The token ids. *Shape:* (kept,)
    """
    row_of_token = torch.zeros(vocab_size, dtype=torch.long)
    row_of_token[kept] = torch.arange(len(kept))
    for name, module in embeddings.named_modules():
        # There may be as many positions, or types, as token ids.
        of_tokens = not any(other in name for other in ("position", "type"))
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocab_size and of_tokens:
            module.weight = nn.Parameter(module.weight[kept].clone())
            module.num_embeddings, module.padding_idx = len(kept), None
            module.register_buffer("row_of_token", row_of_token.clone(), persistent=False)
            module.register_forward_pre_hook(_rows_of)


def _rows_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    row_of_token: Tensor = module.get_buffer("row_of_token")
    return (row_of_token[inputs[0]],)
