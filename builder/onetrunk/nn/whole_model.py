"""A whole encoder with an output of its own: what full fine-tuning trains, and what one ordinary model a task is."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.trunk import Trunk


class WholeModel(nn.Module):
    """Embeddings, all layers and an output, all of them trainable. The last layer runs folded, as in a head.

    Attributes:
        embeddings: the encoder's.
        row_of_token: token id -> row of its embedding. *Shape:* (vocab_size,)
        head: all the encoder's layers, as a head on tap 0.
    """

    row_of_token: Tensor

    def __init__(self, encoder: Encoder, head: Head, row_of_token: Tensor) -> None:
        super().__init__()
        self._embed = encoder.embed
        self.embeddings = encoder.embeddings
        self.head = head
        self.register_buffer("row_of_token", row_of_token, persistent=False)

    @property
    def output(self) -> nn.Linear:
        """Its output."""
        return self.head.output

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw outputs. *Shape of each input:* (batch_size, tokens); *of the result:* (batch_size, outputs)."""
        rows = self.row_of_token[input_ids]
        raw: Tensor = self.head(self._embed(rows, token_type_ids), attention_mask)
        return raw


def new_whole_model(trunk: Trunk, *, outputs: int | nn.Linear, vocabulary: Tensor | None = None) -> WholeModel:
    """A copy of the whole trunk to be fine-tuned, with a fresh output from torch's global generator.

    Args:
        trunk: what to start from.
        outputs: numbers that it gives for a text, or an output of a kind's own.
        vocabulary: the token ids that it will ever see; None for all. Other tokens' embeddings take no gradient, so
            training is the same without them; with them, most of an optimizer step is spent on them.
            *Shape:* (token ids,)
    """
    encoder = copy.deepcopy(trunk.encoder)
    encoder.embeddings.requires_grad_(True)
    row_of_token = torch.arange(trunk.vocab_size)
    if vocabulary is not None:
        kept = _kept(trunk, vocabulary)
        row_of_token = torch.zeros(trunk.vocab_size, dtype=torch.long)
        row_of_token[kept] = torch.arange(len(kept))
        _keep_tokens(encoder.embeddings, trunk.vocab_size, kept)
    head = new_head(trunk, outputs=outputs, tap=0, layers=trunk.depth)
    return WholeModel(encoder, head, row_of_token).train()


def trained_whole_model(
    trunk: Trunk, *, outputs: int | nn.Linear, vocabulary: Tensor, weights: Mapping[str, Tensor]
) -> WholeModel:
    """A model that was trained with a part of the vocabulary, for any text: in evaluation mode, with the whole of it.

    Args:
        trunk: what it started from; tokens that it never saw have their embeddings from there.
        outputs: as for new_whole_model.
        vocabulary: the token ids that it was trained with. *Shape:* (token ids,)
        weights: of its state.
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
    """The token ids whose embeddings are kept, in the order of their rows. *Shape:* (kept,)."""
    kept: Tensor = torch.unique(torch.cat([vocabulary, torch.tensor([trunk.pad_token_id])]))
    return kept


def _keep_tokens(embeddings: nn.Module, vocab_size: int, kept: Tensor) -> None:
    for name, module in list(embeddings.named_modules()):
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocab_size:
            parent = embeddings.get_submodule(name.rpartition(".")[0])
            smaller = nn.Embedding.from_pretrained(module.weight[kept].clone(), freeze=False)  # type: ignore[no-untyped-call]
            setattr(parent, name.rpartition(".")[2], smaller)
