"""A linear-chain conditional random field over tokens: its loss, and its answers, which are exported with the head.

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


def _decode(
    emissions: torch.Tensor, transitions: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tags of each text (Viterbi), and how likely each tag is over all sequences (forward-backward).

    Both in one loop forwards and one backwards: in the exported file, what a step costs is the step, not its numbers.

    Args:
        emissions: a score a token and tag. *Shape:* (batch_size, tokens, tags)
        transitions: a score for each tag after each tag. *Shape:* (tags, tags), from and to
        real: whether a token is one; padding stands on the right. *Shape:* (batch_size, tokens)

    Returns:
        Numbers of tags, *Shape:* (batch_size, tokens); and probabilities, to rounding while a token's scores are less
        than 70 apart, *Shape:* (batch_size, tokens, tags). What stands at padding means nothing.
    """
    # As in the loss, a sum of exponentials over all tags is a product of matrices, and what is less likely than the
    # likeliest by e^69 counts as that. Only differences count, so that all is brought back to nought at each step: sums
    # stay small, and exact also in a file that computes in fp16.
    likeliest = transitions.max(dim=0)[0]
    moves = (transitions - likeliest).exp()
    # To and from: what is compared stands side by side in memory.
    into = transitions.t().contiguous()
    best = transitions[0].unsqueeze(0) + emissions[:, 0]
    alpha = best
    stay = torch.arange(transitions.size(0), device=emissions.device).unsqueeze(0)
    came: list[torch.Tensor] = []
    forwards = [alpha]
    for step in range(1, emissions.size(1)):
        here, emission = real[:, step].unsqueeze(1), emissions[:, step]
        score, source = (best.unsqueeze(1) + into).max(dim=2)
        best = torch.where(here, score - score.max(dim=1, keepdim=True)[0] + emission, best)
        # Through padding the last tag is carried on, so that all texts can be followed back from the same place.
        came.append(torch.where(here, source, stay.expand_as(source)))
        total = (alpha - alpha.max(dim=1, keepdim=True)[0]).exp().matmul(moves).clamp(min=1e-30)
        alpha = torch.where(here, total.log() + likeliest + emission, alpha)
        forwards.append(alpha)
    tag, beta = best.argmax(dim=1, keepdim=True), torch.zeros_like(alpha)
    tags, backwards = [tag], [beta]
    for back in range(len(came)):
        step = len(came) - back
        tag = came[step - 1].gather(1, tag)
        tags.append(tag)
        after = likeliest + emissions[:, step] + beta
        total = (after - after.max(dim=1, keepdim=True)[0]).exp().matmul(moves.t()).clamp(min=1e-30)
        beta = torch.where(real[:, step].unsqueeze(1), total.log(), beta)
        backwards.append(beta)
    chances = torch.stack(forwards, dim=1) + torch.stack(backwards, dim=1).flip(1)
    return torch.cat(tags, dim=1).flip(1), chances.softmax(dim=2)


with warnings.catch_warnings():
    # torch would rather have another way by now; the exporter in use (docs/decisions/0002) knows this one.
    warnings.simplefilter("ignore", DeprecationWarning)
    # Scripted: a loop whose length is that of the text has to be one in the exported file too.
    decode = torch.jit.script(_decode)
