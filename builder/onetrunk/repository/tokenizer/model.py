"""Triton model `tokenizer`: text or token ids in, token ids padded to a bucket out.

All input is checked here, before the trunk, because one bad row inside a batch would fail the whole batch there. A bad
request gets an error of its own, and the requests batched with it are answered.

`build-repo` copies the file into repositories, and beside it `onetrunk/protocol/words.py` as `onetrunk_words.py`. Both
need nothing else of the package, but numpy, tokenizers and what Triton's Python backend provides. The contract is
docs/contracts.md, "Tokenizer".
"""

from __future__ import annotations

import bisect
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# One thread: the trunk keeps all cores busy, and for texts of the lengths served here (a quarter of a millisecond each)
# handing work to threads costs as much as it saves. An operator may set the variable to something else.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from onetrunk_words import WINDOWED_TEXTS, is_readable, token_places, windows_of
from tokenizers import Encoding, Tokenizer

TEXT_INPUTS = ("text", "text_pair")
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OVERLAP_INPUT = "window_overlap"
# The share of a window that the next one reads again, unless a request says otherwise, and the most that it may say.
OVERLAP, MOST_OVERLAP = 0.25, 0.5

# A blank between two words.
SINGLE_BLANK = re.compile(r"(?<=\S) (?=\S)")
# Normalizers that change characters, or white space at the ends and beside other white space, but do not join words.
LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "Precompiled")
# Of normalizers that replace: runs of blanks, and the two kinds of quotes that SentencePiece makes one.
LOCAL_PATTERNS = ({"Regex": " {2,}"}, {"Regex": r"\s+"}, {"String": "``"}, {"String": "''"})

Array = npt.NDArray[Any]
# A text, or a text and its second text.
Row = str | tuple[str, str]


class BadInputError(ValueError):
    """A request that cannot be answered. The message is for its sender."""


@dataclass(frozen=True)
class Settings:
    """The model's parameters.

    Attributes:
        max_length: The longest text in tokens, and the last bucket.
        buckets: The padded lengths in tokens, in increasing order.
        vocab_size: The number of token ids.
        max_text_bytes: The longest text in bytes.
        pad_token_id: The id of the padding token.
        max_windows: The most windows of a text.
    """

    max_length: int
    buckets: tuple[int, ...]
    vocab_size: int
    max_text_bytes: int
    pad_token_id: int
    max_windows: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Settings:
        """Read the `parameters` of the model's config.

        Raises:
            ValueError: A parameter is missing or invalid; the message names it.
        """
        values = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        try:
            buckets = tuple(int(bucket) for bucket in values["buckets"].split(","))
            numbers = {
                key: int(values[key])
                for key in ("max_length", "vocab_size", "max_text_bytes", "pad_token_id", "max_windows")
            }
        except KeyError as error:
            raise ValueError(f"the config lacks the parameter {error}") from None
        except ValueError as error:
            raise ValueError(f"a parameter of the config is not a number: {error}") from None
        if list(buckets) != sorted(set(buckets)) or buckets[0] < 1 or buckets[-1] != numbers["max_length"]:
            raise ValueError(
                f"buckets are {values['buckets']}; allowed: rising, the last one max_length ({numbers['max_length']})"
            )
        return cls(buckets=buckets, **numbers)


@dataclass(frozen=True)
class Padded:
    """A request's token ids, padded to a bucket.

    Attributes:
        ids: The token ids. *Shape:* (batch_size, bucket)
        mask: 1 for tokens, 0 for padding. *Shape:* (batch_size, bucket)
        types: 0 for the first text, 1 for the second. *Shape:* (batch_size, bucket)
        truncated: Whether a text was truncated. *Shape:* (batch_size, 1)
        rows: The texts; empty if the request had token ids.
        encodings: The texts' encodings, by which the words of tokens are found.
    """

    ids: Array
    mask: Array
    types: Array
    truncated: Array
    rows: Sequence[Row] = ()
    encodings: Sequence[Encoding] = ()

    def tensors(self) -> dict[str, Array]:
        """Return the arrays by the model's output names."""
        return {
            "padded_input_ids": self.ids,
            "padded_attention_mask": self.mask,
            "padded_token_type_ids": self.types,
            "truncated": self.truncated,
            "token_count": self.mask.sum(axis=1, keepdims=True),
        }

    def token_words(self) -> Array:
        """Return the word of each token, and the token's place in the text. *Shape:* (batch_size, bucket, 3).

        The three numbers are the index of the word, the token's first character, and the character after its last one;
        see ``token_places``. They are -1 for special tokens, padding, blanks, second texts and requests with token ids.
        """
        found = np.full((*self.ids.shape, 3), -1, dtype=np.int64)
        for row, (texts, encoding) in enumerate(zip(self.rows, self.encodings, strict=True)):
            for token, place in enumerate(token_places(encoding, texts if isinstance(texts, str) else texts[0])):
                if place is not None:
                    found[row, token] = place
        return found


def pad(
    ids: Sequence[Sequence[int] | Array],
    types: Sequence[Sequence[int] | Array],
    truncated: Sequence[bool],
    settings: Settings,
) -> Padded:
    """Pad a request's rows to the smallest bucket that holds the longest of them.

    Args:
        ids: The token ids of each row.
        types: The token types of each row.
        truncated: Whether each row was truncated.
        settings: The model's parameters.
    """
    longest = max(len(row) for row in ids)
    bucket = next(size for size in settings.buckets if size >= longest)
    padded = Padded(
        ids=np.full((len(ids), bucket), settings.pad_token_id, dtype=np.int64),
        mask=np.zeros((len(ids), bucket), dtype=np.int64),
        types=np.zeros((len(ids), bucket), dtype=np.int64),
        truncated=np.array(truncated, dtype=np.bool_).reshape(-1, 1),
    )
    for row, (row_ids, row_types) in enumerate(zip(ids, types, strict=True)):
        padded.ids[row, : len(row_ids)] = row_ids
        padded.mask[row, : len(row_ids)] = 1
        padded.types[row, : len(row_types)] = row_types
    return padded


def nothing_to_read(place: str) -> BadInputError:
    """Return the error for a text without anything that a model could read."""
    return BadInputError(f"{place}: nothing to read (empty, or only blanks, control characters and lone marks)")


def first_bad_row(bad: Array) -> int | None:
    """Return the first row in which anything is true, or None. *Shape:* (batch_size, tokens)."""
    rows = np.flatnonzero(bad.any(axis=1))
    return int(rows[0]) if len(rows) else None


def check_token_ids(ids: Array, mask: Array | None, types: Array | None, settings: Settings) -> Padded:
    """Check a request's token ids and pad them.

    Args:
        ids: The token ids. *Shape:* (batch_size, tokens)
        mask: 1 for tokens, then 0 for padding; None for no padding. *Shape:* (batch_size, tokens)
        types: 0 for the first text, 1 for the second; None for no second text. *Shape:* (batch_size, tokens)
        settings: The model's parameters.

    Raises:
        BadInputError: An input is invalid; the message names the first fault and its row.
    """
    mask = np.ones_like(ids) if mask is None else mask
    types = np.zeros_like(ids) if types is None else types
    for name, array in (("attention_mask", mask), ("token_type_ids", types)):
        if array.shape != ids.shape:
            raise BadInputError(f"{name} 0: {array.shape[1]} numbers a row, but input_ids has {ids.shape[1]}")
    row = first_bad_row((ids < 0) | (ids >= settings.vocab_size))
    if row is not None:
        found = next(int(number) for number in ids[row] if not 0 <= number < settings.vocab_size)
        raise BadInputError(f"input_ids {row}: id {found} is not in the vocabulary (0 to {settings.vocab_size - 1})")
    for name, array in (("attention_mask", mask), ("token_type_ids", types)):
        row = first_bad_row((array != 0) & (array != 1))
        if row is not None:
            raise BadInputError(f"{name} {row}: only 0 and 1 are allowed")
    row = first_bad_row(np.diff(mask, axis=1) > 0)
    if row is not None:
        raise BadInputError(f"attention_mask {row}: a 1 after a 0; padding belongs at the end")
    lengths = mask.sum(axis=1)
    for row, length in enumerate(lengths):
        if not 1 <= length <= settings.max_length:
            raise BadInputError(f"input_ids {row}: {length} tokens; allowed: 1 to {settings.max_length}")
    return pad(
        [row_ids[:length] for row_ids, length in zip(ids, lengths, strict=True)],
        [row_types[:length] for row_types, length in zip(types, lengths, strict=True)],
        [False] * len(ids),
        settings,
    )


def splits_at_blanks(tokenizer: dict[str, Any]) -> bool:
    """Return whether a tokenizer reads what stands before a single blank without looking beyond it.

    Args:
        tokenizer: The content of tokenizer.json.
    """
    splitter, *_ = parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers") or [{}]
    splits = {
        "ByteLevel": splitter.get("use_regex", True),
        "Metaspace": splitter.get("split", True),
        "WhitespaceSplit": True,
    }
    normalizers = parts_of(tokenizer.get("normalizer"), "normalizers")
    return (
        bool(splits.get(splitter.get("type", "")))
        and all(one["type"] in LOCAL_NORMALIZERS or one.get("pattern") in LOCAL_PATTERNS for one in normalizers)
        and all(" " not in token["content"].strip() for token in tokenizer["added_tokens"])
    )


def parts_of(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return a normalizer or a pre-tokenizer as the list of those that it consists of."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for one in part[name] for inner in parts_of(one, name)]


@dataclass(frozen=True)
class Texts:
    """The texts of a request.

    Attributes:
        rows: The texts.
        overlap: The share of a window that the next one reads again. *Shape:* (batch_size,)
    """

    rows: Sequence[Row]
    overlap: Array


class TextEncoder:
    """Turns texts into token ids, with a bound on the time that a long text takes."""

    def __init__(self, tokenizer_json: str, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        if self.tokenizer.get_vocab_size() > settings.vocab_size:
            raise ValueError(
                f"tokenizer.json has {self.tokenizer.get_vocab_size()} tokens, the config's vocab_size is "
                f"{settings.vocab_size}: they belong to different trunks"
            )
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(settings.max_length, strategy="longest_first")
        parsed = json.loads(tokenizer_json)
        self.enough_tokens = self._tokens_that_settle_the_rest(parsed)
        self.cuts_at_blanks = splits_at_blanks(parsed)

    def _tokens_that_settle_the_rest(self, tokenizer: dict[str, Any]) -> int | None:
        """Return how many tokens the start of a text must have, so that the rest cannot change the answer.

        Encoding a megabyte takes about a second, and only 128 of its tokens are kept. In a tokenizer like BERT's, the
        text on the right of a word does not change the word's tokens. Therefore a text that is cut at any character has
        the tokens of the whole text, except for its last word (at most one token a character) and for a special token
        that was cut in two. Tokenizers that take words apart at blanks are as good where the text is cut at a blank
        between two words. Others give no such guarantee, and get whole texts (None).
        """
        if splits_at_blanks(tokenizer):
            return self.settings.max_length + 1
        forms = [(tokenizer.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        if forms != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            return None
        longest_special = max((len(token["content"]) for token in tokenizer["added_tokens"]), default=0)
        return self.settings.max_length + int(tokenizer["model"]["max_input_chars_per_word"]) + longest_special

    def read(self, raw: bytes, place: str) -> str:
        """Decode a text.

        Args:
            raw: The text's bytes.
            place: The input and the row, with which an error message begins ("text 3").

        Raises:
            BadInputError: The text has too many bytes, is not UTF-8, or has no word.
        """
        if len(raw) > self.settings.max_text_bytes:
            raise BadInputError(f"{place}: {len(raw)} bytes; allowed: {self.settings.max_text_bytes}")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInputError(f"{place}: not valid UTF-8 (byte {error.start})") from None
        # Before there are tokens: byte-level tokenizers have some for blanks too.
        if not is_readable(text):
            raise nothing_to_read(place)
        return text

    def beginning(self, text: str) -> str:
        """Return the beginning of a text that settles its first ``max_length`` tokens."""
        if self.enough_tokens is None:
            return text
        # English has four or five characters a token. Growing eightfold keeps the cost of all attempts together below
        # 8/7 of that of the whole text.
        characters = 16 * self.enough_tokens
        while characters < len(text):
            blank = SINGLE_BLANK.search(text, characters) if self.cuts_at_blanks else None
            if self.cuts_at_blanks and blank is None:
                return text
            beginning = text[: blank.start() if blank else characters]
            start = self.tokenizer.encode(beginning, add_special_tokens=False)
            if len(start) + sum(len(part) for part in start.overflowing) >= self.enough_tokens:
                return beginning
            characters *= 8
        return text

    def encode(self, rows: Sequence[Row]) -> list[Encoding]:
        """Encode the rows of all requests at once, truncated to `max_length` and not padded."""
        return self.tokenizer.encode_batch(
            [
                self.beginning(row) if isinstance(row, str) else (self.beginning(row[0]), self.beginning(row[1]))
                for row in rows
            ]
        )

    def windows(self, row: Row, overlap: float) -> list[tuple[int, int, int, int]]:
        """Take a long text apart into windows, or the longer one of a pair, beside the whole of the other.

        If the shorter one of a pair takes more than half of the room, each text gets a half, as where a pair is cut.

        Args:
            row: The text, or the pair.
            overlap: The share of a window that the next one reads again.

        Returns:
            The first character of each window and the one after its last, in the text and in the second text.
        """
        room = self.settings.max_length - self.tokenizer.num_special_tokens_to_add(not isinstance(row, str))
        if isinstance(row, str):
            return [(*window, 0, 0) for window in self._windows(row, room, overlap, self.settings.max_windows)]
        lengths = [len(self._pieces(self.beginning(text))) for text in row]
        shorter = 0 if (lengths[0], len(row[0])) <= (lengths[1], len(row[1])) else 1
        half = lengths[shorter] > room // 2
        kept = self._windows(row[shorter], room // 2, 0.0, 1)[0] if half else (0, len(row[shorter]))
        room = room // 2 if half else room - lengths[shorter]
        windows = self._windows(row[1 - shorter], room, overlap, self.settings.max_windows)
        return [(*kept, *window) if shorter == 0 else (*window, *kept) for window in windows]

    def _windows(self, text: str, tokens: int, overlap: float, most: int) -> list[tuple[int, int]]:
        # A text whose words are all unknown to the tokenizer is one window, which is refused like any such text.
        return windows_of(text, self._pieces, tokens=tokens, overlap=overlap, most=most) or [(0, len(text))]

    def _pieces(self, text: str) -> Encoding:
        return self.tokenizer.encode(text, add_special_tokens=False)


def read_texts(encoder: TextEncoder, texts: Array, pairs: Array | None, overlap: Array | None) -> Texts:
    """Read a request's texts.

    Args:
        encoder: The encoder, which decodes them.
        texts: The texts as bytes. *Shape:* (batch_size, 1)
        pairs: The second texts as bytes, empty if a row has none; None if no row has one. *Shape:* (batch_size, 1)
        overlap: The share of a window that the next one reads again; None for the default. *Shape:* (batch_size, 1)

    Raises:
        BadInputError: A text has too many bytes, is not UTF-8, or has no word; or an overlap is out of range.
    """
    shares = np.full(len(texts), OVERLAP) if overlap is None else overlap[:, 0]
    for row, share in enumerate(shares):
        if not 0 <= share <= MOST_OVERLAP:
            raise BadInputError(f"{OVERLAP_INPUT} {row}: {share:g}; allowed: 0 to {MOST_OVERLAP:g}")
    rows: list[Row] = []
    for row, raw in enumerate(texts[:, 0]):
        text = encoder.read(raw, f"text {row}")
        raw_pair = b"" if pairs is None else pairs[row, 0]
        rows.append((text, encoder.read(raw_pair, f"text_pair {row}")) if raw_pair else text)
    return Texts(rows, shares)


def window_places(encoder: TextEncoder, texts: Texts) -> Array:
    """Return where the windows of a request's texts are. *Shape:* (batch_size, most windows of a text, 4).

    The four numbers are the window's first character and the one after its last, in the text and in the second text.
    They are -1 behind the windows of texts that have fewer.

    Raises:
        BadInputError: There are too many, for which others would wait.
    """
    found: list[list[tuple[int, int, int, int]]] = []
    most = WINDOWED_TEXTS * encoder.settings.max_windows
    for text, share in zip(texts.rows, texts.overlap, strict=True):
        found.append(encoder.windows(text, float(share)))
        if sum(map(len, found)) > most:
            raise BadInputError(
                f"the texts have more than {most} windows together, for which others would wait: ask about fewer"
            )
    places = np.full((len(found), max(map(len, found)), 4), -1, dtype=np.int64)
    for row, windows in enumerate(found):
        places[row, : len(windows)] = windows
    return places


def padded_texts(rows: Sequence[Row], encodings: Sequence[Encoding], settings: Settings) -> Padded:
    """Pad a request's encodings.

    Raises:
        BadInputError: A text has no tokens: the tokenizer drops all of its characters.
    """
    for row, (text, encoding) in enumerate(zip(rows, encodings, strict=True)):
        read = set(encoding.sequence_ids)
        for sequence, name in enumerate(TEXT_INPUTS if isinstance(text, tuple) else TEXT_INPUTS[:1]):
            if sequence not in read:
                raise nothing_to_read(f"{name} {row}")
    padded = pad(
        [encoding.ids for encoding in encodings],
        [encoding.type_ids for encoding in encodings],
        [bool(encoding.overflowing) for encoding in encodings],
        settings,
    )
    return replace(padded, rows=rows, encodings=encodings)


def bad_input(message: str) -> Any:
    """Return a response that rejects the request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


class Counts:
    """Counts what was read, by bucket, for Triton's metrics.

    Telling Triton costs a message to its process, so it is told once a second.
    """

    FAMILIES = (
        ("onetrunk_texts_total", "Texts or rows of token ids that were read, by the bucket that they were padded to"),
        ("onetrunk_tokens_total", "Tokens of these texts, special tokens included"),
        ("onetrunk_padding_total", "Tokens of padding behind them"),
        ("onetrunk_truncated_texts_total", "Texts whose end was not read"),
    )

    def __init__(self, buckets: Sequence[int]) -> None:
        self.counted = {bucket: [0] * len(self.FAMILIES) for bucket in buckets}
        self.told_at = time.monotonic()
        # A family must live as long as its metrics.
        self.families = [
            pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            for name, text in self.FAMILIES
        ]
        self.metrics = {
            bucket: [family.Metric(labels={"bucket": str(bucket)}) for family in self.families] for bucket in buckets
        }

    def add(self, padded: Padded) -> None:
        """Count a request's rows."""
        rows, bucket = padded.ids.shape
        tokens = int(padded.mask.sum())
        counted = self.counted[bucket]
        for place, number in enumerate((rows, tokens, rows * bucket - tokens, int(padded.truncated.sum()))):
            counted[place] += number

    def tell(self) -> None:
        """Tell Triton what was counted, unless it was told within the last second."""
        now = time.monotonic()
        if now - self.told_at < 1.0:
            return
        self.told_at = now
        for bucket, counted in self.counted.items():
            for place, number in enumerate(counted):
                if number:
                    self.metrics[bucket][place].increment(number)
                    counted[place] = 0


# The id of requests that only find out whether models answer, which are not counted.
CHECK_ID = "onetrunk-check"


class PartSeconds:
    """A histogram of the seconds that requests spend in this model, told as the counters that Prometheus makes of one.

    Triton has histograms of its own, but each value costs a message to its process. These are told once a second.
    """

    LIMITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, float("inf"))

    def __init__(self, part: str) -> None:
        self.counted = [0] * len(self.LIMITS_S)
        self.sum_s = 0.0
        self.told_at = time.monotonic()
        # A family must live as long as its metrics.
        self.families = {
            kind: pb_utils.MetricFamily(
                name=f"onetrunk_part_seconds_{kind}",
                description=f"Seconds of a request's run in a part: {text}",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            for kind, text in (("bucket", "runs of at most so many"), ("sum", "their sum"), ("count", "runs"))
        }
        labels = {"part": part}
        self.buckets = [
            self.families["bucket"].Metric(labels=labels | {"le": f"{limit:g}" if limit < float("inf") else "+Inf"})
            for limit in self.LIMITS_S
        ]
        self.sum, self.count = self.families["sum"].Metric(labels=labels), self.families["count"].Metric(labels=labels)

    def add(self, seconds: float, requests: Sequence[Any]) -> None:
        """Count requests that were answered together, and tell Triton, unless it was told within the last second."""
        number = sum(request.request_id() != CHECK_ID for request in requests)
        self.counted[bisect.bisect_left(self.LIMITS_S, seconds)] += number
        self.sum_s += number * seconds
        now = time.monotonic()
        if now - self.told_at >= 1.0:
            self.told_at = now
            self._tell()

    def _tell(self) -> None:
        total = 0
        for bucket, number in zip(self.buckets, self.counted, strict=True):
            total += number
            if total:
                bucket.increment(total)
        if total:
            self.count.increment(total)
            self.sum.increment(self.sum_s)
        self.counted, self.sum_s = [0] * len(self.LIMITS_S), 0.0


class TritonPythonModel:
    """The tokenizer as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters, and the `tokenizer.json` of this version."""
        try:
            self.settings = Settings.from_config(json.loads(args["model_config"]))
            path = Path(args["model_repository"]) / args["model_version"] / "tokenizer.json"
            self.encoder = TextEncoder(path.read_text(encoding="utf-8"), self.settings)
            self.counts = Counts(self.settings.buckets)
            self.seconds = PartSeconds(args["model_name"])
        except Exception as error:  # tokenizers raises bare Exception for a broken file.
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests that Triton passes, and count them."""
        began = time.perf_counter()
        responses = self._answer(requests)
        self.counts.tell()
        self.seconds.add(time.perf_counter() - began, requests)
        return responses

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests in three steps: read and check each, encode all texts at once, pad each."""
        responses: list[Any] = [None] * len(requests)
        texts_of: dict[int, Texts] = {}
        for i, request in enumerate(requests):
            try:
                texts_or_answer = self._read(request)
                if isinstance(texts_or_answer, Padded):
                    responses[i] = self._respond(request, texts_or_answer)
                elif set(request.requested_output_names()) == {"windows"}:
                    # Its texts are not counted: they were read before, or are read after this, window by window.
                    places = window_places(self.encoder, texts_or_answer)
                    responses[i] = pb_utils.InferenceResponse([pb_utils.Tensor("windows", places)])
                else:
                    texts_of[i] = texts_or_answer
            except BadInputError as error:
                responses[i] = bad_input(str(error))
        encodings = iter(self.encoder.encode([row for texts in texts_of.values() for row in texts.rows]))
        for i, texts in texts_of.items():
            of_request = [next(encodings) for _ in texts.rows]
            try:
                padded = padded_texts(texts.rows, of_request, self.settings)
                responses[i] = self._respond(requests[i], padded, texts)
            except BadInputError as error:
                responses[i] = bad_input(str(error))
        return responses

    def _read(self, request: Any) -> Texts | Padded:
        """Return a request's texts, checked and still to be encoded, or its token ids, checked and padded."""
        found = {}
        for name in TEXT_INPUTS + TOKEN_INPUTS + (OVERLAP_INPUT,):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                found[name] = tensor.as_numpy()
        if set(TEXT_INPUTS[:1]) <= found.keys() <= {*TEXT_INPUTS, OVERLAP_INPUT}:
            return read_texts(self.encoder, found["text"], found.get("text_pair"), found.get(OVERLAP_INPUT))
        if set(TOKEN_INPUTS[:1]) <= found.keys() <= set(TOKEN_INPUTS):
            mask, types = found.get("attention_mask"), found.get("token_type_ids")
            return check_token_ids(found["input_ids"], mask, types, self.settings)
        raise BadInputError(
            "give text (and text_pair), or input_ids (and attention_mask, token_type_ids); "
            f"found: {', '.join(found) or 'no input'}"
        )

    def _respond(self, request: Any, padded: Padded, texts: Texts | None = None) -> Any:
        if request.request_id() != CHECK_ID:
            self.counts.add(padded)
        wanted = request.requested_output_names()
        tensors = {name: value for name, value in padded.tensors().items() if name in wanted}
        if "token_words" in wanted:
            tensors["token_words"] = padded.token_words()
        if "windows" in wanted:
            no_windows = np.full((len(padded.ids), 1, 4), -1, dtype=np.int64)
            tensors["windows"] = no_windows if texts is None else window_places(self.encoder, texts)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])
