"""The texts of a benchmark, sorted into the buckets that the server pads them to."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from onetrunk.admin import AdminClient, text_column
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.lines import BadLine, Line, is_plain, open_lines, read_lines
from onetrunk.client.rows import TextRows
from onetrunk.protocol.errors import BadInput, Problem
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    INPUT_IDS,
    MULTITASK,
    PADDED,
    TEXT,
    TEXT_PAIR,
    TOKEN_TYPE_IDS,
    TOKENIZER,
)


@dataclass(frozen=True)
class Sample:
    """One row, as text and as the server's tokenizer reads it."""

    text: str
    pair: str | None
    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]

    def step(self, model: str) -> dict[str, Any]:
        """Return the row for this ensemble in the format of perf_analyzer's ``--input-data``."""
        if model == MULTITASK:
            return {TEXT: [self.text]} | ({TEXT_PAIR: [self.pair]} if self.pair is not None else {})
        shape = [len(self.input_ids)]
        return {
            INPUT_IDS: {"content": list(self.input_ids), "shape": shape},
            TOKEN_TYPE_IDS: {"content": list(self.token_type_ids), "shape": shape},
        }

    def inputs(self, model: str) -> dict[str, NDArray[Any]]:
        """Return the inputs of a request with this row alone."""
        if model == MULTITASK:
            pair = {} if self.pair is None else {TEXT_PAIR: text_column([self.pair])}
            return {TEXT: text_column([self.text]), **pair}
        return {
            INPUT_IDS: np.array([self.input_ids], np.int64),
            TOKEN_TYPE_IDS: np.array([self.token_type_ids], np.int64),
        }


def read_texts(path: Path | None) -> list[Line]:
    """Return the rows of a file of JSON lines or plain text, or without a file the few dozen of this package.

    Raises:
        BadInput: A line cannot be read, or there is none. Nothing is measured with half of a file.
    """
    if path is None:
        content: BinaryIO = io.BytesIO((files("onetrunk.client.bench") / "texts.jsonl").read_bytes())
        lines = list(read_lines(content, plain=False))
    else:
        try:
            raw, content = open_lines(path)
            with raw:
                lines = list(read_lines(content, plain=is_plain(path)))
        except OSError as error:
            raise BadInput.of_call(f"{path}: {error.strerror or error}") from None
    bad = [Problem(None, f"{path}:{line.number}: {line.reason}") for line in lines if isinstance(line, BadLine)]
    if bad or not lines:
        raise BadInput(bad or [Problem(None, f"{path}: no rows in it")])
    good = [line for line in lines if isinstance(line, Line)]
    TextRows.check([line.text for line in good], [line.pair for line in good])
    return good


def sort_into_buckets(server: AdminClient, catalogue: Catalogue, lines: Sequence[Line]) -> dict[int, list[Sample]]:
    """Return bucket -> its rows, by their length in the server's own tokenizer. Empty buckets are left out."""
    buckets: dict[int, list[Sample]] = defaultdict(list)
    for start in range(0, len(lines), catalogue.max_batch_size):
        for sample in _tokenized(server, lines[start : start + catalogue.max_batch_size]):
            buckets[next(size for size in catalogue.buckets if size >= len(sample.input_ids))].append(sample)
    return dict(sorted(buckets.items()))


def _tokenized(server: AdminClient, lines: Sequence[Line]) -> list[Sample]:
    inputs = {
        TEXT: text_column([line.text for line in lines]),
        TEXT_PAIR: text_column([line.pair or "" for line in lines]),  # empty: no second text
    }
    padded = server.infer(TOKENIZER, inputs)
    lengths = padded[PADDED[ATTENTION_MASK]].sum(axis=1).tolist()
    # A trunk may read no token types, and its tokenizer then returns none.
    types = padded.get(PADDED[TOKEN_TYPE_IDS], np.zeros_like(padded[PADDED[INPUT_IDS]]))
    return [
        Sample(
            line.text,
            line.pair,
            tuple(padded[PADDED[INPUT_IDS]][row, : lengths[row]].tolist()),
            tuple(types[row, : lengths[row]].tolist()),
        )
        for row, line in enumerate(lines)
    ]
