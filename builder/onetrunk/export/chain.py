"""Exported files run one after the other in ONNX Runtime, as a server runs them."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onetrunk.export.batches import Arrays
from onetrunk.export.errors import ParityError
from onetrunk.export.foreign import ForeignSession
from onetrunk.export.sessions import load_session
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, Segment, head_name, segments_below
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds.base import stack_scores

Session: TypeAlias = "onnxruntime.InferenceSession | ForeignSession"


def open_session(path: Path, model: str) -> onnxruntime.InferenceSession:
    """Load a file into ONNX Runtime, on the CPU, in the precision that it asks for.

    Args:
        path: The ONNX file.
        model: The model's name, for the message.

    Raises:
        ParityError: ONNX Runtime does not load the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return load_session(path, options)
    except Exception as error:  # ONNX Runtime has one exception class per status, without a common base
        raise ParityError(model, f"ONNX Runtime does not load it: {error}") from error


@dataclass(frozen=True)
class Chain:
    """The files of a trunk's segments, of its limbs, and of the heads above them.

    Attributes:
        segments: Segment -> its file.
        heads: Task -> the file of its head.
        foreign: The tasks whose head was exported elsewhere, and runs in a process of its own.
        packages: The folder of another ONNX Runtime, on which all files run, each in a process of its own; None is the
            installed one.
    """

    segments: Mapping[Segment, Path]
    heads: Mapping[str, Path]
    foreign: frozenset[str] = field(default=frozenset())
    packages: Path | None = None
    _trunk: dict[Segment, Session] = field(default_factory=dict, init=False, compare=False)

    def _segment(self, segment: Segment) -> Session:
        if segment not in self._trunk:
            self._trunk[segment] = self._session(self.segments[segment], segment.name)
        return self._trunk[segment]

    def _session(self, path: Path, model: str, *, foreign: bool = False) -> Session:
        if foreign or self.packages is not None:
            return ForeignSession(path, model, own=not foreign, packages=self.packages)
        return open_session(path, model)

    def scores(
        self,
        spec: HeadSpec,
        batches: Sequence[tuple[NDArray[np.int64], Arrays]],
        done: Callable[[], None] = lambda: None,
    ) -> NDArray[np.float32]:
        """Compute a head's scores.

        Args:
            spec: The head.
            batches: The rows of each batch and its inputs; see `padded_batches`.
            done: Called after each batch.

        Returns:
            *Shape:* (rows, the kind's dims).

        Raises:
            ParityError: ONNX Runtime does not load a file, or a head that was exported elsewhere does not answer.
        """
        file, model = self.heads[spec.task], head_name(spec.task)
        head = self._session(file, model, foreign=spec.task in self.foreign)
        below = segments_below(self.segments, spec.state)
        found: dict[int, NDArray[np.float32]] = {}
        for rows, inputs in batches:
            tensors = dict(inputs)
            for segment in below:
                session = self._segment(segment)
                feeds = {tensor.name: tensors[tensor.name] for tensor in session.get_inputs()}
                tensors[segment.output] = session.run(None, feeds)[0]
            feeds = {HIDDEN_STATE: tensors[spec.state], ATTENTION_MASK: tensors[ATTENTION_MASK]}
            found |= zip(rows.tolist(), head.run(None, feeds)[0], strict=True)
            done()
        return stack_scores([found[row] for row in range(len(found))])
