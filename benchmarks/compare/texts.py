"""Real text of a given length in tokens, and the requests that ask about it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.peers.peer import HttpRequest
from onetrunk.export.batches import parity_texts
from onetrunk.nn.trunk import Trunk


def texts_of_length(trunk: Trunk, tokens: int, count: int = 64) -> list[str]:
    """Different texts that the trunk's tokenizer reads as exactly ``tokens`` tokens, without padding.

    They are real sentences, put one after the other, over again where they do not last, and cut at a word: as long as
    the bucket, so that no system gains by padding less than another.
    """
    tokenizer = trunk.tokenizer()
    words = " ".join(" ".join(pair) for pair in parity_texts()).split()
    found: list[str] = []
    for start in range(len(words)):
        # A word is a token at least.
        text = _grow(tokenizer, (words[start:] + words[:start]) * (tokens // len(words) + 1), tokens)
        if text is not None:
            found.append(text)
        if len(found) == count:
            break
    return found


def _grow(tokenizer: object, words: Sequence[str], tokens: int) -> str | None:
    """The first words that come to this many tokens; None where no number of words does."""
    low, high = 1, len(words)
    while low <= high:
        middle = (low + high) // 2
        length = len(tokenizer.encode(" ".join(words[:middle])).ids)  # type: ignore[attr-defined]
        if length == tokens:
            return " ".join(words[:middle])
        low, high = (middle + 1, high) if length < tokens else (low, middle - 1)
    return None


def triton_request(model: str, text: str, pair: str | None = None, outputs: Sequence[str] = ()) -> HttpRequest:
    """A request to Triton's HTTP endpoint; no outputs ask for all."""
    inputs = [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]
    if pair is not None:
        inputs.append({"name": "text_pair", "shape": [1, 1], "datatype": "BYTES", "data": [pair]})
    body: dict[str, object] = {"inputs": inputs}
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    return HttpRequest(f"/v2/models/{model}/infer", json.dumps(body).encode())
