"""What a head must answer, worked out without a server: by torch, or by the files themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.admin import Row
from onetrunk.export.chain import Chain, padded_batches
from onetrunk.export.parity import ServedTask, open_session
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE
from onetrunk.tasks.head_spec import HeadSpec


def reference_answers(trunk: Trunk, head: ServedTask, rows: Sequence[Row], max_length: int) -> NDArray[np.float32]:
    """A head's scores for texts, the whole chain in torch, with the head's last layer run whole.

    Args:
        trunk: the trunk.
        head: the head; one without a torch module is run by ONNX Runtime, on torch's states.
        rows: texts.
        max_length: longest row in tokens; longer ones are cut as the server's tokenizer cuts them.

    Returns:
        *Shape:* (rows, outputs of the head), or of a head that answers for every token (rows, tokens, 2)
    """
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=trunk.pad_token_id)
    encoded = tokenizer.encode_batch([(text, pair) if pair else text for text, pair in rows])
    ids = torch.tensor([row.ids for row in encoded])
    mask = torch.tensor([row.attention_mask for row in encoded])
    types = torch.tensor([row.type_ids for row in encoded])
    tap = head.spec.tap
    state = trunk.states(ids, types, mask, [tap])[tap]
    if head.module is None:
        session = open_session(head.path, head.name)
        feeds = {HIDDEN_STATE: state.numpy(), ATTENTION_MASK: mask.numpy()}
        scores: NDArray[np.float32] = session.run(None, feeds)[0]
        return scores
    with torch.no_grad():
        whole: NDArray[np.float32] = head.module.forward_whole(state, mask).numpy()
    return whole


def own_answers(
    trunk: Trunk, chain: Chain, spec: HeadSpec, rows: Sequence[Row], buckets: tuple[int, ...]
) -> NDArray[np.float32]:
    """A head's scores by the files that are served, run here: what there is to expect of a reduced precision.

    Torch is no reference for that: it says what the task loses by it, which is for the gate to judge.

    Args:
        trunk: the trunk, for its tokenizer.
        chain: segments and head.
        spec: the head.
        rows: texts.
        buckets: padded lengths in tokens.

    Returns:
        *Shape:* (rows, outputs of the head)
    """
    batches = list(padded_batches(trunk, [(text, pair) if pair else text for text, pair in rows], buckets))
    return chain.scores(spec, batches)
