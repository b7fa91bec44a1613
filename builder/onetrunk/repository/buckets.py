"""The padded lengths of a repository, called buckets: given, chosen for a sample of texts, or growing by a factor.

Triton batches requests only if their shapes are equal, so texts are padded to a few lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.repository.configs import MAX_BATCH_SIZE
from onetrunk.repository.length_sample import LengthSample, sample_file, sample_tasks

# docs/results/performance/padding.md: with more buckets, little padding is saved and fewer requests share a shape; with
# fewer, the shortest texts of a mix are padded more than by the powers of two.
MAX_BUCKETS = 10
# GPU kernels are faster for multiples of 8, and the choice stays the same when the texts change a little.
STEP = 8
# GLUE's longer tasks have about this many tokens; most texts of the others are shorter.
_USUAL_LENGTH = 64
_FIRST_BUCKET = 16
# Attention grows with the square of the length, so doubling wastes more of it the longer the texts are.
_LAST_DOUBLED, _GROWTH, _LONG_STEP = 512, 1.5, 64
# A pair has three special tokens, or four, and at least one token of each text.
_MIN_LENGTH = 5
MAX_BATCH_TOKENS = 2**14
"""The tokens of a full batch, padding included: 32 texts of 512 tokens."""

Cost = Callable[[int], float]


@dataclass(frozen=True)
class Buckets:
    """Padded lengths in tokens, and how they fit the texts for which they were chosen or on which they were measured.

    Attributes:
        lengths: The padded lengths, ascending.
        chosen: Whether they were chosen for the texts.
        source: The texts; None if there are none.
        texts: The number of texts.
        padding_share: The share of padding in all tokens if each text is a request of its own; None without texts.
        notes: Remarks on the texts.
        median_length: The median length of the texts in tokens; None without texts.
    """

    lengths: tuple[int, ...]
    chosen: bool = False
    source: str | None = None
    texts: int = 0
    padding_share: float | None = None
    notes: tuple[str, ...] = ()
    median_length: int | None = None

    @property
    def typical(self) -> int:
        """The bucket of the median text; without texts, the last bucket of up to 64 tokens."""
        if self.median_length is not None:
            return next(bucket for bucket in self.lengths if bucket >= self.median_length)
        return max((bucket for bucket in self.lengths if bucket <= _USUAL_LENGTH), default=self.lengths[0])

    @property
    def fit(self) -> str | None:
        """The texts and their share of padding in words; None without texts."""
        if self.padding_share is None:
            return None
        return f"{self.source}: {self.texts:,} texts, {100 * self.padding_share:.1f}% padding"

    @property
    def origin(self) -> str | None:
        """The texts for which the buckets were chosen, in words; None if they were not chosen."""
        return self.fit if self.chosen else None


@dataclass(frozen=True)
class BucketRequest:
    """The buckets that a user asks for.

    Attributes:
        lengths: The buckets; ``auto`` chooses them for a sample of texts; None is 16, 32, 64, ...; see `buckets_up_to`.
        texts: A file of texts to choose or measure by; see `sample_file`. None is the dev texts of the served tasks,
            where texts are needed.
        task_dir: The folder of task files.
        data_root: The folder in which data files are looked for first.
        most: The greatest number of buckets to choose.
    """

    lengths: tuple[int, ...] | Literal["auto"] | None = None
    texts: Path | None = None
    task_dir: Path = Path("tasks")
    data_root: Path | None = None
    most: int = MAX_BUCKETS

    def resolve(
        self, trunk: Trunk, max_length: int, tasks: Sequence[str], progress: ProgressCallback = silent
    ) -> Buckets:
        """Return the buckets.

        Args:
            trunk: The trunk, whose tokenizer measures the texts.
            max_length: The longest text in tokens, which is the last bucket.
            tasks: The tasks that are served.
            progress: Called as the texts are measured.

        Raises:
            UserError: ``max_length`` or a bucket is not allowed, or the texts cannot be found or read.
        """
        least = trunk.tokenizer().num_special_tokens_to_add(True) + 2
        check_max_length(max_length, trunk.max_positions, least)
        if self.lengths != "auto":
            given = self.lengths
            lengths = (
                buckets_up_to(max_length, trunk.max_positions) if given is None else check_buckets(given, max_length)
            )
            if self.texts is None:
                return Buckets(lengths)
            return _measured(lengths, sample_file(self.texts, trunk, max_length, progress), chosen=False)
        if self.most < 1:
            raise UserError(f"--bucket-count {self.most}: give at least 1")
        if self.texts is not None:
            sample = sample_file(self.texts, trunk, max_length, progress)
        else:
            sample = sample_tasks(tasks, self.task_dir, self.data_root, trunk, max_length, progress)
        return _measured(choose_buckets(sample.lengths, max_length, self.most, STEP), sample, chosen=True)


def _measured(lengths: tuple[int, ...], sample: LengthSample, *, chosen: bool) -> Buckets:
    return Buckets(
        lengths,
        chosen=chosen,
        source=sample.source,
        texts=sample.lengths.total(),
        padding_share=padding_share(sample.lengths, lengths),
        notes=sample.notes,
        median_length=sorted(sample.lengths.elements())[sample.lengths.total() // 2],
    )


def buckets_up_to(max_length: int, max_positions: int) -> tuple[int, ...]:
    """Return 16, 32, 64, ..., 512, from there on each half as long again, and at last ``max_length`` itself.

    Raises:
        UserError: ``max_length`` is not allowed; see `check_max_length`.
    """
    check_max_length(max_length, max_positions)
    buckets = []
    length = _FIRST_BUCKET
    while length < max_length:
        buckets.append(length)
        length = 2 * length if length < _LAST_DOUBLED else _up_to_step(_GROWTH * length, _LONG_STEP)
    return (*buckets, max_length)


def _up_to_step(length: float, step: int) -> int:
    return -int(-length // step) * step


def check_max_length(max_length: int, max_positions: int, least: int = _MIN_LENGTH) -> None:
    """Check the longest text that a repository is to accept.

    Args:
        max_length: The longest text in tokens.
        max_positions: The longest input of the trunk in tokens.
        least: The tokens of the shortest pair, special tokens included.

    Raises:
        UserError: The trunk cannot read as many tokens, or they are too few for a pair of texts.
    """
    if not least <= max_length <= max_positions:
        raise UserError(f"--max-length {max_length}: this trunk reads {least} to {max_positions} tokens")


def rows_of_batch(max_length: int, max_tokens: int | None = None) -> int:
    """Return the most texts of a batch, for Triton's ``max_batch_size``, which knows no tokens.

    Args:
        max_length: The longest text in tokens: a batch may consist of such texts.
        max_tokens: The most tokens of a batch, padding included; None is `MAX_BATCH_TOKENS`, or one text if that is
            longer.

    Raises:
        UserError: Not even one text fits.
    """
    if max_tokens is not None and max_tokens < max_length:
        raise UserError(
            f"--max-batch-tokens {max_tokens}: one text may have {max_length} (--max-length): give {max_length} or more"
        )
    return max(1, min(MAX_BATCH_SIZE, (max_tokens or MAX_BATCH_TOKENS) // max_length))


def batch_note(max_length: int, rows: int) -> str | None:
    """Return in one line why a batch has fewer texts than usual; None if it has not."""
    if rows >= MAX_BATCH_SIZE:
        return None
    scores_gb = 4 * MAX_BATCH_SIZE * max_length**2 / 1e9
    return (
        f"batches have at most {rows} {'text' if rows == 1 else 'texts'}, not {MAX_BATCH_SIZE}, since a text may have "
        f"{max_length:,} tokens: each attention head would need {scores_gb:.1f} GB for its scores on "
        f"{MAX_BATCH_SIZE} of them; --max-batch-tokens allows more"
    )


def check_buckets(buckets: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Check the buckets that a user gave, and return them.

    Raises:
        UserError: They are not ascending, start too low, or do not end at ``max_length``.
    """
    shown = ",".join(map(str, buckets))
    if list(buckets) != sorted(set(buckets)):
        raise UserError(f"--buckets {shown}: give them in ascending order, as in 16,32,64,{max_length}")
    if not buckets or buckets[0] < _MIN_LENGTH:
        raise UserError(f"--buckets {shown}: the shortest that can hold a pair of texts has {_MIN_LENGTH} tokens")
    if buckets[-1] != max_length:
        raise UserError(
            f"--buckets {shown}: the last one has to be --max-length ({max_length}), so that every text fits: "
            f"end with {max_length}, or give --max-length {buckets[-1]}"
        )
    return tuple(buckets)


def tokens(length: int) -> float:
    """Return the cost of a padded text in tokens."""
    return float(length)


def choose_buckets(
    lengths: Mapping[int, int], max_length: int, most: int, step: int = 1, cost: Cost = tokens
) -> tuple[int, ...]:
    """Choose the buckets for which a sample of texts costs least. The choice is exact and deterministic.

    Args:
        lengths: Length in tokens -> number of texts. Longer texts than ``max_length`` are truncated.
        max_length: The last bucket, whatever the lengths are, since every text must fit.
        most: The greatest number of buckets. Fewer are chosen if more would save nothing.
        step: All buckets but the last are multiples of it.
        cost: The cost of one text padded to a length, which must not decrease with the length. For example,
            ``lambda n: n + n * n / 2000`` adds the quadratic part of attention.

    Returns:
        The buckets in tokens, ascending. The last one is ``max_length``.
    """
    # A bucket that no text needs, or that is longer than its longest text, is never better than a shorter one.
    needed = {min(-(-length // step) * step, max_length) for length, texts in lengths.items() if texts}
    sizes = np.array(sorted(needed | {max_length}))
    costs = np.array([cost(int(size)) for size in sizes])
    below = _texts_below(lengths, sizes)
    # step_cost[i, j]: the cost of the texts longer than size j and at most as long as size i, padded to size i.
    step_cost = (below[:, None] - below[None, :]) * costs[:, None]
    step_cost[np.triu_indices(len(sizes))] = np.inf
    # cheapest[i]: the least cost of all texts at most as long as size i with a given number of buckets, of which size i
    # is the last.
    cheapest, previous = below * costs, []
    best = cheapest[-1]
    chosen: tuple[int, ...] = (max_length,)
    for _ in range(1, min(most, len(sizes))):
        totals = cheapest[None, :] + step_cost
        previous.append(totals.argmin(axis=1))
        cheapest = totals.min(axis=1)
        if cheapest[-1] < best:
            best, chosen = cheapest[-1], _trace(sizes, previous)
    return chosen


def padding_share(lengths: Mapping[int, int], buckets: Sequence[int]) -> float:
    """Return the share of padding in all tokens if each text is a request of its own; 0 without texts.

    Args:
        lengths: Length in tokens -> number of texts. Longer texts than the last bucket are truncated.
        buckets: The padded lengths, ascending.
    """
    kept = sent = 0
    for length, texts in lengths.items():
        cut = min(length, buckets[-1])
        kept += cut * texts
        sent += next(bucket for bucket in buckets if bucket >= cut) * texts
    return 1 - kept / sent if sent else 0.0


def _texts_below(lengths: Mapping[int, int], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many texts fit each size; all fit the last one. *Shape:* (sizes,)."""
    counts = np.zeros(len(sizes))
    for length, texts in lengths.items():
        counts[np.searchsorted(sizes, min(length, sizes[-1]))] += texts
    return np.cumsum(counts)


def _trace(sizes: NDArray[np.int64], previous: Sequence[NDArray[np.int64]]) -> tuple[int, ...]:
    """Follow the choices of the previous bucket back from the last size, and return the buckets."""
    place, found = len(sizes) - 1, []
    for step in (*reversed(previous), None):
        found.append(int(sizes[place]))
        if step is not None:
            place = step[place]
    return tuple(reversed(found))
