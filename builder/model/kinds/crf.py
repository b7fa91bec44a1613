"""A linear-chain conditional random field over tokens: its loss, and its decoding, which is exported with the head.

Source: Lafferty, McCallum and Pereira 2001; Lample et al. 2016, "Neural Architectures for Named Entity Recognition",
section 2.2. The token before the first one counts as tagged O, so what may begin is what may follow an O.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE_TAG = 0
_LEAST = 1e-30


def negative_log_likelihood(emissions: Tensor, transitions: Tensor, tags: Tensor) -> Tensor:
    """How unlikely the tags are, summed over the batch; to rounding, while a token's scores are less than 70 apart.

    Args:
        emissions: a score a token and tag. *Shape:* (batch_size, tokens, tags)
        transitions: a score for each tag after each tag. *Shape:* (tags, tags), from and to
        tags: numbers of tags; less than 0 for padding, which stands on the right. *Shape:* (batch_size, tokens)
    """
    real, wanted = tags >= 0, tags.clamp(min=0)
    alpha = transitions[OUTSIDE_TAG] + emissions[:, 0]
    # A sum of exponentials over all tags before, as a product of matrices: tags squared are added up a token and text.
    likeliest = transitions.max(dim=0).values.detach()
    moves = (transitions - likeliest).exp()
    before = torch.full_like(wanted[:, 0], OUTSIDE_TAG)
    score = emissions.new_zeros(len(tags))
    for step in range(tags.shape[1]):
        here = real[:, step]
        if step:
            most = alpha.max(dim=1, keepdim=True).values.detach()
            # What is less likely than the likeliest by e^70 counts as that, so that no logarithm is of nought.
            total = ((alpha - most).exp() @ moves).clamp(min=_LEAST)
            moved = total.log() + likeliest + most + emissions[:, step]
            alpha = torch.where(here[:, None], moved, alpha)
        now = wanted[:, step]
        gained = transitions[before, now] + emissions[:, step].gather(1, now[:, None])[:, 0]
        score = score + torch.where(here, gained, torch.zeros_like(gained))
        before = torch.where(here, now, before)
    return (torch.logsumexp(alpha, dim=1) - score).sum()


def _viterbi(emissions: torch.Tensor, transitions: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The likeliest tags of each text.

    Args:
        emissions: a score a token and tag. *Shape:* (batch_size, tokens, tags)
        transitions: a score for each tag after each tag. *Shape:* (tags, tags), from and to
        real: whether a token is one; padding stands on the right. *Shape:* (batch_size, tokens)

    Returns:
        Numbers of tags; what stands at padding means nothing. *Shape:* (batch_size, tokens)
    """
    best = transitions[0].unsqueeze(0) + emissions[:, 0]
    stay = torch.arange(transitions.size(0), device=emissions.device).unsqueeze(0)
    came: list[torch.Tensor] = []
    for step in range(1, emissions.size(1)):
        score, source = (best.unsqueeze(2) + transitions).max(dim=1)
        here = real[:, step].unsqueeze(1)
        # Only differences count. So sums stay small, and exact also in a file that computes in fp16.
        score = score - score.max(dim=1, keepdim=True).values
        best = torch.where(here, score + emissions[:, step], best)
        # Through padding the last tag is carried on, so that all texts can be followed back from the same place.
        came.append(torch.where(here, source, stay.expand_as(source)))
    tag = best.argmax(dim=1, keepdim=True)
    backwards = [tag]
    for back in range(len(came)):
        tag = came[len(came) - 1 - back].gather(1, tag)
        backwards.append(tag)
    tags: list[torch.Tensor] = []
    for place in range(len(backwards)):
        tags.append(backwards[len(backwards) - 1 - place])
    return torch.cat(tags, dim=1)


with warnings.catch_warnings():
    # torch would rather have another way by now; the exporter in use (docs/decisions/0002) knows this one.
    warnings.simplefilter("ignore", DeprecationWarning)
    # Scripted: a loop whose length is that of the text has to be one in the exported file too.
    viterbi = torch.jit.script(_viterbi)
