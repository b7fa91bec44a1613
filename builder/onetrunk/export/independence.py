"""The check that a head of unknown origin answers every text from this text alone.

A server puts the texts of several clients into one batch and pads them to a common length. So a head must answer a
text in the same way whichever texts stand beside it, however far it is padded, and every time it is asked. The heads
that are trained here do so by construction; one that was exported elsewhere is run to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onetrunk.export.errors import ParityError
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import stack_scores

TOLERANCE = 1e-4
"""The greatest difference that rounding explains: of probabilities, absolute; of a number, as a share of its range.
ONNX Runtime sums up batches of different sizes in different orders, which changes an answer by about 1e-6."""

# The most rows that Triton puts into one batch, so that a head which mixes rows of large batches only is found too.
_ROWS = 32

# Operators that answer differently every time they are run. Two runs would not find one that is rarely felt.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

Array = NDArray[np.float32]
Answers = Callable[[NDArray[np.float32], NDArray[np.int64]], Array]
"""Hidden state, *Shape:* (rows, tokens, width), and mask, *Shape:* (rows, tokens) -> scores, *Shape:* (rows, *dims)."""


def check_independence(
    model: str,
    spec: HeadSpec,
    answers: Answers,
    state: NDArray[np.float32],
    mask: NDArray[np.int64],
    buckets: Sequence[int],
) -> None:
    """Check that no text's answer depends on anything but the text.

    Args:
        model: The model's name, for the message.
        spec: What the head answers.
        answers: Runs the head.
        state: The hidden state of right-padded texts. *Shape:* (rows, tokens, width)
        mask: Their mask. *Shape:* (rows, tokens)
        buckets: The padded lengths in tokens that are served, ascending.

    Raises:
        ParityError: An answer changes from one run to the next, with the texts in the same batch, or with the padding.
            The message says which of them, and by how much.
    """
    compare = get_kind(spec.kind).answers.difference

    def require(found: Array, expected: Array, fault: str) -> None:
        difference = compare(found, expected, spec)
        if not difference <= TOLERANCE:  # NaN fails too
            shape = "batch {} x {} tokens".format(*mask.shape)
            raise ParityError(model, f"{fault} (on {shape})", difference, TOLERANCE)

    expected = answers(state, mask)
    if len(expected) != len(state):
        raise ParityError(model, f"answers {len(expected)} rows for {len(state)} texts")
    require(answers(state, mask), expected, "is random: the same texts get other answers in a second run")

    alone = [answers(state[row, None], mask[row, None])[0] for row in range(len(state))]
    mixes = "mixes rows: a text gets another answer "
    require(stack_scores(alone), expected, mixes + "alone than in a batch")
    shuffled = np.random.default_rng(0).permutation(np.arange(_ROWS) % len(state))
    require(answers(state[shuffled], mask[shuffled]), expected[shuffled], mixes + "beside other texts in another order")

    pads = "depends on padding: a text gets another answer "
    filled = np.where(mask[..., None] == 1, state, -state[:, ::-1])
    require(answers(filled, mask), expected, pads + "if the states at padding differ")
    lengths = [next(bucket for bucket in buckets if bucket >= length) for length in mask.sum(axis=1)]
    cut = [answers(state[row, None, :length], mask[row, None, :length])[0] for row, length in enumerate(lengths)]
    require(stack_scores(cut), expected, pads + "in a shorter bucket")


def random_operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of an ONNX file that are random by definition, in its functions and subgraphs too."""
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    found: set[str] = set()
    while graphs:
        for node in graphs.pop().node:
            found |= {node.op_type} & _RANDOM
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs
    return sorted(found)
