"""The output layer of a tagging head, and a linear-chain conditional random field on its outputs.

Source: Lafferty, McCallum and Pereira 2001; Lample et al. 2016, "Neural Architectures for Named Entity Recognition",
section 2.2. The place before the first token counts as tagged O, so a text may begin with what may follow an O.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

OUTSIDE_TAG = 0
_EPSILON, _LEAST_LOGARITHM = 1e-30, -69.0


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

    It is exact to rounding as long as the scores of a token and of a transition are together less than 69 apart.

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


def decode(emissions: Tensor, transitions: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return each text's likeliest tags (Viterbi), and each tag's probability over all sequences (forward-backward).

    Args:
        emissions: The score of each tag at each token. *Shape:* (batch_size, tokens, tags)
        transitions: The score of each tag after each tag, from and to. *Shape:* (tags, tags)
        real: Whether a place is a token; padding is on the right. *Shape:* (batch_size, tokens)

    Returns:
        Tag indices, *Shape:* (batch_size, tokens), and probabilities, *Shape:* (batch_size, tokens, tags). The latter
        are exact to rounding as long as the scores of a token and of a transition are together less than 69 apart.
        Values at padding are undefined.
    """
    # Nothing is computed beyond the batch's longest text.
    longest = real.any(dim=0).sum().clamp(min=1)
    padding = torch.zeros_like(emissions[:, longest:])
    scores, here = emissions[:, :longest].transpose(0, 1), real[:, :longest].t().unsqueeze(2)
    none = torch.zeros_like(here[:1])
    behind = torch.cat((here[1:], none))
    onward = torch.stack((torch.cat((none, torch.ones_like(here[1:]))), behind.flip(0)), dim=1)
    # As in the loss, the sum of exponentials over all tags is a matrix product. What its weights leave out for each tag
    # is added to the tag's own score.
    greatest = torch.stack((transitions.max(dim=0).values, transitions.max(dim=1).values)).unsqueeze(1)
    weights = (torch.stack((transitions, transitions.t())) - greatest).exp()
    own = torch.stack((scores, scores.flip(0)), dim=1) + greatest
    begin = torch.stack((transitions[OUTSIDE_TAG], torch.zeros_like(transitions[OUTSIDE_TAG]))).unsqueeze(1) - greatest
    sums, values = _Sweep.apply(own, onward, begin, weights, scores, behind, transitions)  # type: ignore[no-untyped-call]
    tags = _Follow.apply(values, transitions)  # type: ignore[no-untyped-call]
    log_probabilities = sums[:, 0] + sums[:, 1].flip(0) + scores + greatest.sum(dim=0)
    probabilities = log_probabilities.softmax(dim=2).transpose(0, 1)
    tags = torch.cat((tags.t(), padding[:, :, 0].long()), dim=1)
    return tags, torch.cat((probabilities, padding), dim=1)


class _Sweep(torch.autograd.Function):
    """One pass over the tokens, which computes what both decodings need from either end of the texts.

    In an exported file, a step of a loop costs more than its arithmetic. So the sums from the first token on and those
    from the last are made in the same steps, beside the values of the likeliest sequences, and no step slices or
    stacks: that is what a Scan does by itself. It does not store which tag a value came from: following the tags
    finds that by one row of scores.
    """

    ONNX = """
    <domain: "onetrunk", opset_import: ["" : 17]>
    CrfSweep (own, onward, begin, weights, scores, behind, transitions) => (sums, values) {
        axis = Constant <value_ints = [1]> ()
        # What is less likely than the likeliest by e^69 is raised to that, so that sums are finite, also in fp16.
        least = Constant <value = float {-69.0}> ()
        zero = Constant <value = float {0.0}> ()
        each_way = Shape <start = 1> (own)
        no_sums = ConstantOfShape <value = float[1] {0.0}> (each_way)
        each = Shape <start = 1> (scores)
        no_value = ConstantOfShape <value = float[1] {0.0}> (each)
        last_sums, last_value, sums, values = Scan <
            num_scan_inputs = 4, scan_input_directions = [0, 0, 1, 1], scan_output_directions = [0, 1],
            body = step (
                float[2, batch, tags] sum, float[batch, tags] future, float[2, batch, tags] own_here,
                bool[2, batch, one] goes_on, float[batch, tags] score, bool[batch, one] has_future
            ) => (
                float[2, batch, tags] next_sum, float[batch, tags] next_future,
                float[2, batch, tags] sum_here, float[batch, tags] value
            ) {
                sum_here = Where (goes_on, sum, begin)
                with_own = Add (sum_here, own_here)
                most = ReduceMax <axes = [-1]> (with_own)
                below = Sub (with_own, most)
                shares = Exp (below)
                moved = MatMul (shares, weights)
                logarithm = Log (moved)
                next_sum = Clip (logarithm, least)
                from_here = Where (has_future, future, zero)
                value = Add (from_here, score)
                to = Unsqueeze (value, axis)
                choices = Add (to, transitions)
                chosen = ReduceMax <axes = [-1], keepdims = 0> (choices)
                highest = ReduceMax <axes = [-1]> (value)
                next_future = Sub (chosen, highest)
            }
        > (no_sums, no_value, own, onward, scores, behind)
    }
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        onward: Tensor,
        begin: Tensor,
        weights: Tensor,
        scores: Tensor,
        behind: Tensor,
        transitions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sweep over the tokens from both ends. Only differences between tags matter in what is returned.

        Args:
            ctx: Unused: nothing is learned through decoding.
            own: The tokens' own scores, from either end. *Shape:* (tokens, 2, batch_size, tags)
            onward: Whether a token goes on from the one before it, from either end. *Shape:* (tokens, 2, batch_size, 1)
            begin: The sums where it does not. *Shape:* (2, 1, tags)
            weights: The exponentials of the moves, from and to, from either end. *Shape:* (2, tags, tags)
            scores: The tokens' own scores. *Shape:* (tokens, batch_size, tags)
            behind: Whether a token comes behind this one. *Shape:* (tokens, batch_size, 1)
            transitions: The score of each tag after each tag. *Shape:* (tags, tags)

        Returns:
            The logarithms of the sums over all sequences that end before a token, from either end,
            *Shape:* (tokens, 2, batch_size, tags), and the score of the best sequence that begins with a tag at a
            token, *Shape:* (tokens, batch_size, tags).
        """
        sums, values = [], []
        total, future = torch.zeros_like(own[0]), torch.zeros_like(scores[0])
        for step in range(len(own)):
            sums.append(torch.where(onward[step], total, begin))
            with_own = sums[-1] + own[step]
            shares = (with_own - with_own.max(dim=2, keepdim=True).values).exp()
            total = (shares @ weights).log().clamp(min=_LEAST_LOGARITHM)
            place = len(own) - 1 - step
            value = torch.where(behind[place], future, torch.zeros_like(future)) + scores[place]
            values.append(value)
            future = (value.unsqueeze(1) + transitions).max(dim=2).values - value.max(dim=1, keepdim=True).values
        return torch.stack(sums), torch.stack(values[::-1])

    @staticmethod
    def symbolic(g: Any, own: Any, *others: Any) -> tuple[Any, Any]:
        sums, values = g.op("onetrunk::CrfSweep", own, *others, outputs=2)
        return sums.setType(own.type()), values.setType(others[3].type())


class _Follow(torch.autograd.Function):
    """The best sequence of tags, token by token, from what the best sequences behind each tag are worth."""

    ONNX = """
    <domain: "onetrunk", opset_import: ["" : 17]>
    CrfFollow (values, transitions) => (tags) {
        texts = Shape <start = 1, end = 2> (values)
        outside = ConstantOfShape <value = int64[1] {0}> (texts)
        last_tag, tags = Scan <
            num_scan_inputs = 1,
            body = step (int64[batch] before, float[batch, tags] value) => (int64[batch] tag, int64[batch] found) {
                row = Gather (transitions, before)
                choices = Add (row, value)
                tag = ArgMax <axis = -1, keepdims = 0> (choices)
                found = Identity (tag)
            }
        > (outside, values)
    }
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, transitions: Tensor) -> Tensor:
        """Return the tags.

        *Shapes:* (tokens, batch_size, tags) and (tags, tags) to (tokens, batch_size)
        """
        tag = torch.full_like(values[0, :, 0], OUTSIDE_TAG, dtype=torch.int64)
        tags = []
        for value in values:
            tag = (transitions[tag] + value).argmax(dim=1)
            tags.append(tag)
        return torch.stack(tags)

    @staticmethod
    def symbolic(g: Any, values: Any, transitions: Any) -> Any:
        tags = g.op("onetrunk::CrfFollow", values, transitions)
        return tags.setType(values.type().with_dtype(torch.int64).with_sizes([None, None]))


ONNX_FUNCTIONS = (_Sweep.ONNX, _Follow.ONNX)
"""What our own operators compute, in ONNX's notation. A new one belongs here, too, or its file loads nowhere."""
