"""A classifier as a teacher: it is run on texts once, and what it says becomes soft targets of the task's kind."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onetrunk.adopt.answers import AnswerCache, Rows, in_batches, text_hash
from onetrunk.adopt.classifier import Classifier, split_tag
from onetrunk.files import cache_root
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.words import words_of
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.kinds.base import KindConfig, Offsets, labels_of
from onetrunk.tasks.kinds.span_tags import OUTSIDE, bio_tags
from onetrunk.tasks.rows import Text
from onetrunk.tasks.soft_targets import RawTargets, order_of, raw_above, raw_of_probabilities

# The longest text that a teacher is given, in tokens, unless it reads less.
_MOST_TOKENS = 512
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
# So many texts are tokenised and sorted by length at a time; after each batch of them, outputs are on disk.
_TEXTS_AT_A_TIME = 2048
# Layers of a model that was fine-tuned from the trunk differ from the trunk's by a few hundredths of their norm.
_MOST_CHANGE = 0.5


class ModelTeacher:
    """A classifier that teaches. It is loaded when it has to read a text that it has not read before.

    Attributes:
        classifier: What is known of it.
    """

    def __init__(
        self, classifier: Classifier, *, cache: Path | None = None, device: str = "cpu", jobs: int = 1
    ) -> None:
        """Create a teacher.

        Args:
            classifier: The classifier.
            cache: The root folder of all caches; None is the user's own.
            device: Where it runs.
            jobs: The number of processes that share its texts.
        """
        self.classifier = classifier
        self._device, self._jobs = device, jobs
        width = len(classifier.outputs) + (2 if classifier.by_token else 0)
        self._cache_root = cache
        self._cache = AnswerCache(cache_root(cache), f"{classifier.sha256[:16]}-{_MOST_TOKENS}-{device}", width)

    @property
    def identity(self) -> str:
        """See ``SoftTeacher.identity``."""
        return f"{self.classifier.sha256} {self.classifier.outputs} {self.classifier.thresholds}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """See ``SoftTeacher.facts``."""
        found = {
            "name": Path(self.classifier.source).name
            if Path(self.classifier.source).exists()
            else self.classifier.source,
            "sha256": self.classifier.sha256,
            "family": self.classifier.model_type,
        }
        if self.classifier.thresholds is not None:
            found["thresholds"] = ", ".join(f"{one:g}" for one in self.classifier.thresholds)
        return found

    @property
    def texts(self) -> Texts:
        """None: a model brings no texts."""
        return ()

    def outputs(self, texts: Sequence[Text], progress: ProgressCallback = silent) -> list[Rows]:
        """Return what the model says about each text; it reads those that it has not read before.

        Args:
            texts: The texts, or pairs of texts.
            progress: Called as it goes on.

        Raises:
            UserError: The model cannot be loaded, or cannot read such texts.
            OneTrunkError: The disk is full.
        """
        with self._cache.locked():
            missing = self._cache.missing(texts)
            if missing:
                self._read(missing, progress)
            known = self._cache.read()
        return [known[text_hash(text)] for text in texts]

    def _read(self, texts: list[Text], progress: ProgressCallback) -> None:
        what, done = f"{self.classifier.name}: the teacher reads", 0

        def count(read: int) -> None:
            nonlocal done
            done += read
            progress(what, done, len(texts))

        progress(what, 0, len(texts))
        # Sorted first, so that a batch has little padding and each process as much to do.
        texts = sorted(texts, key=lambda text: len("".join(text)))
        jobs = min(self._jobs, len(texts))
        if jobs == 1:
            _run_model(self.classifier, self._cache, texts, self._device, 0, count)
            return
        from joblib import Parallel, delayed

        threads = max(1, torch.get_num_threads() // jobs)
        shares = (texts[part::jobs] for part in range(jobs))
        runs = (
            delayed(_run_share)(self.classifier, self._cache, share, self._device, part, threads)
            for part, share in enumerate(shares)
        )
        for read in Parallel(n_jobs=jobs, return_as="generator_unordered")(runs):
            count(read)

    def raw(
        self,
        texts: Texts,
        config: KindConfig,
        offsets: Offsets | None = None,
        progress: ProgressCallback = silent,
    ) -> RawTargets:
        """See ``SoftTeacher.raw``."""
        rows = self.outputs(texts, progress)
        kind = self.classifier.kind
        if kind == "tagging":
            assert offsets is not None, "a kind by token is given its tokens"
            return _tagging_targets(rows, texts, offsets, self.classifier.outputs, labels_of(config))
        raw = np.concatenate(rows).astype(np.float32)
        if kind == "regression":
            assert config.range is not None, "a regression task has a range"
            low, high = config.range
            return (raw - low) / (high - low)
        order = order_of(labels_of(config), self.classifier.outputs)
        raw = raw[:, order]
        if self.classifier.thresholds is not None:
            raw = raw_above(raw, [self.classifier.thresholds[place] for place in order])
        return raw

    def encoder_like(self, trunk: Trunk) -> Trunk | None:
        """Return the model's encoder, if it was fine-tuned from the trunk: heads may then start from its layers.

        Args:
            trunk: The trunk.
        """
        try:
            encoder = load_trunk(self.classifier.folder, cache=self._cache_root)
        except UserError:
            return None  # of a family that is none of trunks
        if type(encoder.encoder) is not type(trunk.encoder):
            return None
        ours, theirs = trunk.layers.state_dict(), encoder.layers.state_dict()
        if {name: one.shape for name, one in ours.items()} != {name: one.shape for name, one in theirs.items()}:
            return None
        change = sum(float((theirs[name] - ours[name]).norm()) for name in ours)
        return encoder if change <= _MOST_CHANGE * sum(float(one.norm()) for one in ours.values()) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and advice from the terminal: what matters is told as an error."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_model(classifier: Classifier) -> tuple[nn.Module, Any]:
    """Load a classifier and its tokenizer, in fp32 and in evaluation mode.

    Args:
        classifier: The classifier.

    Raises:
        UserError: Its files do not fit together, or `transformers` cannot load them.
    """
    import transformers

    folder = classifier.folder
    kind = (
        transformers.AutoModelForTokenClassification
        if classifier.by_token
        else transformers.AutoModelForSequenceClassification
    )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            with torch.device("meta"):
                parameters = sum(one.numel() for one in kind.from_config(copy.deepcopy(config)).parameters())
            # No format stores a parameter in less than a byte; what is missing would be made up at random.
            if parameters > classifier.size_bytes:
                raise UserError(
                    f"{folder}: the weights do not fit config.json: it describes {parameters:,} parameters, and the "
                    f"files have {classifier.size_bytes:,} bytes"
                )
            model, info = kind.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        except UserError:
            raise
        except Exception as error:  # transformers raises many types for what does not go together
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "ignore_mismatched_sizes" in reason:
                reason = "its weights have other shapes than config.json describes"
            raise UserError(f"{folder}: transformers cannot load it: {reason:.200}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: the weights lack {missing[0]:.100}: was the model saved without its classifier?")
    if tokenizer.pad_token is None:
        raise UserError(f"{folder}: its tokenizer has no padding token: give tokenizer_config.json a pad_token")
    if classifier.by_token and not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer has no tokenizer.json, without which tokens have no place in a text")
    if model.config.num_labels != len(classifier.outputs):
        raise UserError(f"{folder}: the model has {model.config.num_labels} outputs, not {len(classifier.outputs)}")
    if len(tokenizer) > (tokens := model.get_input_embeddings().num_embeddings):
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens, and the model embeddings of {tokens:,}: they are "
            "of two models"
        )
    return model.float().eval().requires_grad_(False), tokenizer


def longest_text(model: Any, tokenizer: Any) -> int:
    """Return the longest text that a model reads, in tokens."""
    positions = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
    # RoBERTa's kin count positions from behind that of the padding.
    if getattr(getattr(getattr(model, model.base_model_prefix, None), "embeddings", None), "padding_idx", None):
        positions -= model.config.pad_token_id + 1
    return int(min(_MOST_TOKENS, positions, tokenizer.model_max_length))


def _run_share(
    classifier: Classifier, cache: AnswerCache, texts: list[Text], device: str, part: int, threads: int
) -> int:
    torch.set_num_threads(threads)
    _run_model(classifier, cache, texts, device, part, lambda read: None)
    return len(texts)


@torch.no_grad()
def _run_model(
    classifier: Classifier,
    cache: AnswerCache,
    texts: Sequence[Text],
    device: str,
    part: int,
    count: Callable[[int], None],
) -> None:
    model, tokenizer = load_model(classifier)
    model.to(device)
    with cache.appending(part) as file:
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = texts[start : start + _TEXTS_AT_A_TIME]
            for batch, rows in answers_of(model, tokenizer, some, by_token=classifier.by_token):
                for row, one in zip(batch, rows, strict=True):
                    if not np.isfinite(one).all():
                        raise UserError(
                            f"{classifier.folder}: the model answers {some[row]!r:.60} with NaN or infinity"
                        )
                    file.append(some[row], one)
                count(len(batch))


def answers_of(
    model: Any, tokenizer: Any, texts: Sequence[Text], *, by_token: bool
) -> Iterator[tuple[list[int], list[Rows]]]:
    """Run a model on texts, batch by batch from short to long ones.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        texts: The texts, or pairs of texts.
        by_token: Whether it answers for every token.

    Yields:
        The numbers of some texts, and the outputs for each; by token with the start and end of each token, in
        characters, and without special tokens.
    """
    device = next(model.parameters()).device
    encoded = _encode(model, tokenizer, texts, by_token)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    places = encoded.pop("offset_mapping", None)
    for batch in in_batches(lengths, _BATCH_TOKENS[device.type]):
        inputs = tokenizer.pad(
            {name: [values[row] for row in batch] for name, values in encoded.items()}, return_tensors="pt"
        )
        raw = model(**{name: one.to(device) for name, one in inputs.items()}).logits.float().cpu().numpy()
        if places is None:
            yield batch, [one[None] for one in raw]
            continue
        yield (
            batch,
            [
                np.array(
                    [[*place, *one[token]] for token, place in enumerate(places[row]) if place[0] < place[1]],
                    dtype=np.float32,
                ).reshape(-1, 2 + raw.shape[-1])
                for one, row in zip(_from_left(raw, inputs["attention_mask"].numpy()), batch, strict=True)
            ],
        )


def _from_left(raw: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield each text's outputs without padding, on whichever side the tokenizer pads."""
    for one, real in zip(raw, mask, strict=True):
        yield one[real.astype(bool)]


def _encode(model: Any, tokenizer: Any, texts: Sequence[Text], by_token: bool) -> dict[str, Any]:
    pairs = [text for text in texts if not isinstance(text, str)]
    columns = [list(column) for column in zip(*pairs, strict=True)] if pairs else [list(texts)]
    encoded = tokenizer(
        *columns, truncation=True, max_length=longest_text(model, tokenizer), return_offsets_mapping=by_token
    )
    taken = set(inspect.signature(model.forward).parameters)
    # A model of one token type, or of none, is not told the texts of a pair apart by it.
    if getattr(model.config, "type_vocab_size", 2) < 2:
        taken.discard("token_type_ids")
    return {name: values for name, values in encoded.items() if name in taken or name == "offset_mapping"}


def _tagging_targets(
    rows: Sequence[Rows], texts: Texts, offsets: Offsets, outputs: Sequence[str], types: Sequence[str]
) -> RawTargets:
    """Return what a tagger says about the trunk's tokens: the logarithms of the tags' probabilities.

    A word has the tag of its first token, as such models are trained and read. Tags in other forms than BIO become BIO.

    Returns:
        *Shape:* (texts, tokens, tags), with zeros at padding.
    """
    tags = bio_tags(types)
    longest = max((len(row) for row in offsets), default=0)
    found = np.zeros((len(texts), longest, len(tags)), dtype=np.float32)
    outside = np.eye(1, len(tags), dtype=np.float64)[0]
    matrix = _to_bio(outputs, tags)
    for row, (theirs, text, tokens) in enumerate(zip(rows, texts, offsets, strict=True)):
        assert isinstance(text, str), "a tagging task reads single texts"
        words = words_of(text)
        by_word = _words_probabilities(theirs, words, matrix)
        word = 0
        for token, (start, end) in enumerate(tokens):
            probabilities = outside
            if start < end:
                while word < len(words) and words[word][1] <= start:
                    word += 1
                if word < len(words) and words[word][0] < end:
                    probabilities = by_word[word] if start <= words[word][0] else _inside(by_word[word])
            found[row, token] = raw_of_probabilities(probabilities, independent=False)
    return found


def _to_bio(outputs: Sequence[str], tags: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return which tag each output counts as. *Shape:* (outputs, tags)."""
    matrix = np.zeros((len(outputs), len(tags)))
    for place, output in enumerate(outputs):
        letter, kind = split_tag(output)
        kind = "_".join(kind.split())
        begins = letter in ("B", "U", "S")
        tag = OUTSIDE if letter == OUTSIDE else f"{'B' if begins else 'I'}-{kind}"
        matrix[place, tags.index(tag)] = 1
    return matrix


def _words_probabilities(
    rows: Rows, words: Sequence[tuple[int, int]], matrix: np.ndarray[Any, Any]
) -> list[np.ndarray[Any, Any]]:
    """Return the probabilities of each word's tags; an I- that follows no tag of its type counts as B-."""
    found = []
    outside = np.eye(1, matrix.shape[1])[0]
    token, before = 0, 0
    for start, end in words:
        while token < len(rows) and rows[token, 1] <= start:
            token += 1
        probabilities = outside
        if token < len(rows) and rows[token, 0] < end:
            logits = rows[token, 2:].astype(np.float64)
            softmax = np.exp(logits - logits.max())
            probabilities = (softmax / softmax.sum()) @ matrix
            for inside in range(2, len(probabilities), 2):
                if before not in (inside, inside - 1):
                    probabilities[inside - 1] += probabilities[inside]
                    probabilities[inside] = 0
        found.append(probabilities)
        before = int(probabilities.argmax())
    return found


def _inside(probabilities: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the probabilities of a further piece of a word: in it, a span goes on."""
    found = probabilities.copy()
    found[2::2] += found[1::2]
    found[1::2] = 0
    return found


def ranges_of(numbers: Sequence[Rows], labels: Sequence[float] = ()) -> tuple[float, float]:
    """Return a range for a model that answers with a number: round numbers that its answers lie between.

    Args:
        numbers: Its answers for many texts. *Shape of each:* (1, 1)
        labels: Other numbers that lie between them, too.
    """
    values = np.array([*(float(one[0, 0]) for one in numbers), *labels], dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-6)))
    low, high = float(np.floor(low / step) * step), float(np.ceil(high / step) * step)
    return (round(low, 9), round(high if high > low else low + step, 9))
