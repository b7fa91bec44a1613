"""The buckets of a repository: those that a user gave, those that suit real texts, or those that suit any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.repository.bucket_choice import choose_buckets, padding_share
from onetrunk.repository.buckets import buckets_up_to, check_buckets, check_max_length
from onetrunk.repository.length_sample import LengthSample, sample_file, sample_tasks

# docs/results/performance/padding.md: more of them save little, and requests of equal shape meet more rarely; with
# fewer, the shortest texts of a mix are padded more than they would be by the powers of two.
MOST_BUCKETS = 10
# Kernels for GPUs like multiples of it, and it keeps the choice steady when the texts change a little.
STEP = 8
# What GLUE's longer tasks come to; most texts of the others are shorter.
_USUAL = 64


@dataclass(frozen=True)
class Buckets:
    """Padded lengths in tokens, and how they suit the texts that they were chosen from or measured on.

    Attributes:
        lengths: rising.
        chosen: whether they were chosen from texts.
        source: which texts; None where there were none.
        texts: how many.
        padding_share: padding in all tokens sent, were these texts sent one a request; None without texts.
        notes: what a user should know of the texts.
        median_length: in tokens, of these texts; None without texts.
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
        """The bucket of a middling text: of those known; without texts, of up to 64 tokens."""
        if self.median_length is not None:
            return next(bucket for bucket in self.lengths if bucket >= self.median_length)
        return max((bucket for bucket in self.lengths if bucket <= _USUAL), default=self.lengths[0])

    @property
    def fit(self) -> str | None:
        """Texts and share of padding in words; None without texts."""
        if self.padding_share is None:
            return None
        return f"{self.source}: {self.texts:,} texts, {100 * self.padding_share:.1f}% padding"

    @property
    def origin(self) -> str | None:
        """What the buckets were chosen from, in words; None where they were not."""
        return self.fit if self.chosen else None


@dataclass(frozen=True)
class BucketWish:
    """What a user wants of the buckets.

    Attributes:
        lengths: the buckets themselves; ``auto`` to choose them from texts; None for 16, 32, 64 ...
        texts: a file of texts to choose from or to measure on, see sample_file; None for the dev texts of the served
            tasks, where they are needed.
        task_dir: the folder of task files.
        data_root: where data files are looked for first.
        most: how many are chosen at most.
    """

    lengths: tuple[int, ...] | Literal["auto"] | None = None
    texts: Path | None = None
    task_dir: Path = Path("tasks")
    data_root: Path | None = None
    most: int = MOST_BUCKETS

    def settle(
        self, trunk: Trunk, max_length: int, tasks: Sequence[str], progress: ProgressCallback = silent
    ) -> Buckets:
        """The buckets for these tasks on this trunk.

        Raises:
            UserError: ``max_length`` or a bucket is not allowed, or the texts cannot be found or read.
        """
        check_max_length(max_length, trunk.max_positions)
        if self.lengths != "auto":
            given = self.lengths
            lengths = (
                buckets_up_to(max_length, trunk.max_positions) if given is None else check_buckets(given, max_length)
            )
            if self.texts is None:
                return Buckets(lengths)
            return _fitted(lengths, sample_file(self.texts, trunk, max_length, progress), chosen=False)
        if self.most < 1:
            raise UserError(f"--bucket-count {self.most}: give at least 1")
        if self.texts is not None:
            sample = sample_file(self.texts, trunk, max_length, progress)
        else:
            sample = sample_tasks(tasks, self.task_dir, self.data_root, trunk, max_length, progress)
        return _fitted(choose_buckets(sample.lengths, max_length, self.most, STEP), sample, chosen=True)


def _fitted(lengths: tuple[int, ...], sample: LengthSample, *, chosen: bool) -> Buckets:
    return Buckets(
        lengths,
        chosen=chosen,
        source=sample.source,
        texts=sample.lengths.total(),
        padding_share=padding_share(sample.lengths, lengths),
        notes=sample.notes,
        median_length=sorted(sample.lengths.elements())[sample.lengths.total() // 2],
    )
