"""The output layer of a tagging head, and a linear-chain conditional random field on its outputs.

Source: Lafferty, McCallum and Pereira 2001; Lample et al. 2016, "Neural Architectures for Named Entity Recognition",
section 2.2. The place before the first token counts as tagged O, so a text may begin with what may follow an O.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

OUTSIDE_TAG = 0
_EPSILON = 1e-30


class TokenOutput(nn.Linear):
    """A linear layer that is applied to every token's state.

    Attributes:
        by_token: Makes a head keep all tokens' states.
        transitions: A CRF's score for each tag after each tag, from and to; None without a CRF. *Shape:* (tags, tags)
    """

    by_token: ClassVar[bool] = True

    def __init__(self, width: int, tags: int, *, transitions: bool) -> None:
        super().__init__(width, tags)
        self.transitions = nn.Parameter(torch.zeros(tags, tags)) if transitions else None


def negative_log_likelihood(emissions: Tensor, transitions: Tensor, tags: Tensor) -> Tensor:
    """Return the negative log-likelihood of the tags, summed over the batch.

    It is exact to rounding as long as the scores of a token are less than 70 apart.

    Args:
        emissions: The score of each tag at each token. *Shape:* (batch_size, tokens, tags)
        transitions: The score of each tag after each tag, from and to. *Shape:* (tags, tags)
        tags: Tag indices; negative for padding, which is on the right. *Shape:* (batch_size, tokens)

    Returns:
        *Shape:* ()
    """
    real, gold = tags >= 0, tags.clamp(min=0)
    alpha = transitions[OUTSIDE_TAG] + emissions[:, 0]
    # The sum of exponentials over all previous tags is computed as a matrix product, which costs tags^2 a token.
    greatest = transitions.max(dim=0).values.detach()
    weights = (transitions - greatest).exp()
    before = torch.full_like(gold[:, 0], OUTSIDE_TAG)
    score = emissions.new_zeros(len(tags))
    for step in range(tags.shape[1]):
        here = real[:, step]
        if step:
            most = alpha.max(dim=1, keepdim=True).values.detach()
            # What is less likely than the likeliest by e^70 is raised to that, so that the logarithm is finite.
            total = ((alpha - most).exp() @ weights).clamp(min=_EPSILON)
            moved = total.log() + greatest + most + emissions[:, step]
            alpha = torch.where(here[:, None], moved, alpha)
        now = gold[:, step]
        gained = transitions[before, now] + emissions[:, step].gather(1, now[:, None])[:, 0]
        score = score + torch.where(here, gained, torch.zeros_like(gained))
        before = torch.where(here, now, before)
    return (torch.logsumexp(alpha, dim=1) - score).sum()


def _decode(
    emissions: torch.Tensor, transitions: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each text's likeliest tags (Viterbi), and each tag's probability over all sequences (forward-backward).

    In the exported file, a step of a loop costs more than its arithmetic. So the sums from the first token on and those
    from the last are made in one loop, beside the likeliest sequences, and it ends with the batch's longest text.

    Args:
        emissions: The score of each tag at each token. *Shape:* (batch_size, tokens, tags)
        transitions: The score of each tag after each tag, from and to. *Shape:* (tags, tags)
        real: Whether a place is a token; padding is on the right. *Shape:* (batch_size, tokens)

    Returns:
        Tag indices, *Shape:* (batch_size, tokens), and probabilities, *Shape:* (batch_size, tokens, tags). The latter
        are exact to rounding as long as the scores of a token are less than 70 apart. Values at padding are undefined.
    """
    longest = int(real.any(dim=0).sum().clamp(min=1))
    padding = emissions.size(1) - longest
    # Step by step: what a step reads is one row.
    scores, here = emissions[:, :longest].transpose(0, 1), real[:, :longest].t().unsqueeze(2)
    # As in the loss, the sum of exponentials over all tags is a matrix product, and what is less likely than the
    # likeliest by e^69 is raised to that. Only differences matter, so each step subtracts the greatest value: sums stay
    # small, and exact even in a file that computes in fp16.
    greatest = torch.stack((transitions.max(dim=0)[0], transitions.max(dim=1)[0])).unsqueeze(1)
    weights = (torch.stack((transitions, transitions.t())) - greatest).exp()
    both_ways = torch.stack((scores, scores.flip(0)), dim=1)
    # The sums from the last token on begin anew as long as there is padding behind the token.
    behind = torch.cat((torch.zeros_like(here[:1]), here[1:].flip(0)))
    goes_on = torch.stack((torch.ones_like(behind), behind), dim=1)
    # To and from, so that values that are compared are adjacent in memory.
    into = transitions.t().contiguous()
    best = transitions[0].unsqueeze(0) + scores[0]
    # What is before a token, from either end, and the same with the token's own score.
    nothing = torch.zeros_like(both_ways[0])
    before = torch.stack((transitions[0].unsqueeze(0).expand_as(best), nothing[1]))
    sums = before + both_ways[0]
    stay = torch.arange(transitions.size(0), device=emissions.device).unsqueeze(0).expand_as(best)
    sources: list[torch.Tensor] = []
    found = [before]
    for step in range(1, longest):
        score, source = (best.unsqueeze(1) + into).max(dim=2)
        best = torch.where(here[step], score - score.max(dim=1, keepdim=True)[0] + scores[step], best)
        # Padding carries the last tag on, so that all texts can be traced back from the same place.
        sources.append(torch.where(here[step], source, stay))
        total = (sums - sums.max(dim=2, keepdim=True)[0]).exp().matmul(weights).clamp(min=1e-30)
        before = torch.where(goes_on[step], total.log() + greatest, nothing)
        sums = before + both_ways[step]
        found.append(before)
    tag = best.argmax(dim=1, keepdim=True)
    tags = [tag]
    for back in range(len(sources)):
        tag = sources[len(sources) - 1 - back].gather(1, tag)
        tags.append(tag)
    from_both = torch.stack(found)
    log_probabilities = from_both[:, 0] + from_both[:, 1].flip(0) + scores
    sequence = torch.nn.functional.pad(torch.cat(tags, dim=1).flip(1), [0, padding])
    probabilities = log_probabilities.softmax(dim=2).transpose(0, 1)
    return sequence, torch.nn.functional.pad(probabilities, [0, 0, 0, padding])


with warnings.catch_warnings():
    # torch deprecates scripting, but the exporter in use (docs/decisions/0002) reads it.
    warnings.simplefilter("ignore", DeprecationWarning)
    # Scripted, so that a loop over the tokens of a text is a loop in the exported file too.
    decode = torch.jit.script(_decode)
