"""Segments and a head, run one after the other as a server runs them: labelled texts in, a metric out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from onetrunk.export.parity import open_session
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    HIDDEN_STATE,
    INPUT_IDS,
    TOKEN_TYPE_IDS,
    Segment,
    head_name,
    hidden_name,
)
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds.base import stack_rows

if TYPE_CHECKING:
    import onnxruntime

_BATCH = 16

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Chain:
    """The files that are run.

    Attributes:
        segments: segment -> its file.
        heads: task -> its head's file.
    """

    segments: Mapping[Segment, Path]
    heads: Mapping[str, Path]

    @cached_property
    def _trunk(self) -> dict[Segment, onnxruntime.InferenceSession]:
        return {segment: open_session(path, segment.name) for segment, path in sorted(self.segments.items())}

    def scores(
        self,
        spec: HeadSpec,
        batches: Sequence[tuple[NDArray[np.int64], Arrays]],
        done: Callable[[], None] = lambda: None,
    ) -> NDArray[np.float32]:
        """A head's scores.

        Args:
            spec: the head.
            batches: rows, and their inputs; see padded_batches.
            done: called after each batch.

        Returns:
            *Shape:* (rows, dims of the head)
        """
        head = open_session(self.heads[spec.task], head_name(spec.task))
        found: dict[int, NDArray[np.float32]] = {}
        for rows, inputs in batches:
            tensors = dict(inputs)
            for segment, session in self._trunk.items():
                # Of a tap 0 the next segment knows nothing: it reads token ids again.
                if segment.stop <= spec.tap:
                    tensors[segment.output] = session.run(None, {name: tensors[name] for name in segment.inputs})[0]
            feeds = {HIDDEN_STATE: tensors[hidden_name(spec.tap)], ATTENTION_MASK: tensors[ATTENTION_MASK]}
            found |= zip(rows.tolist(), head.run(None, feeds)[0], strict=True)
            done()
        return stack_rows([found[row] for row in range(len(found))])


def padded_batches(
    trunk: Trunk, texts: Sequence[str | tuple[str, str]], buckets: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
    """Texts as the served tokenizer gives them: cut at the last bucket, right-padded to the smallest that holds all.

    Gives the rows of each batch, *Shape:* (batch_size,), and its arrays, each *Shape:* (batch_size, bucket).
    """
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(buckets[-1])
    encoded: list[Encoding] = tokenizer.encode_batch(list(texts))
    order = np.argsort([len(row.ids) for row in encoded], kind="stable")
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        longest = len(encoded[rows[-1]].ids)
        bucket = next(bucket for bucket in buckets if bucket >= longest)
        arrays: Arrays = {
            INPUT_IDS: np.full((len(rows), bucket), trunk.pad_token_id, dtype=np.int64),
            ATTENTION_MASK: np.zeros((len(rows), bucket), dtype=np.int64),
            TOKEN_TYPE_IDS: np.zeros((len(rows), bucket), dtype=np.int64),
        }
        for place, row in enumerate(rows):
            length = len(encoded[row].ids)
            arrays[INPUT_IDS][place, :length] = encoded[row].ids
            arrays[ATTENTION_MASK][place, :length] = 1
            arrays[TOKEN_TYPE_IDS][place, :length] = encoded[row].type_ids
        yield rows, arrays
