"""Lessons: what a teacher from outside gives the heads of a task to learn, with labels beside it where there are some.

Train and dev data are made of a task's own labelled rows and of texts without labels. Every text has the teacher's raw
outputs; one that has no label of its own also gets the label that these stand for, so that heads can be scored on it:
the score is then how far they agree with the teacher.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Examples, Task
from onetrunk.tasks.examples import Texts, normalized, split_number, token_offsets
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.records import Split
from onetrunk.tasks.soft_targets import RawTargets, SoftTeacher, is_given
from onetrunk.tasks.task_file import DEV_SHARE
from onetrunk.training.states import tokenise

if TYPE_CHECKING:
    from onetrunk.tasks.kinds.base import Offsets

TEMPERATURE = 2.0

# The shares of a text's words that a changed copy lacks, and that it has others in place of.
_LEFT_OUT, _REPLACED = 0.1, 0.1


@dataclass(frozen=True)
class Lessons:
    """What the heads of one task learn from a teacher outside.

    Attributes:
        train: The train texts: those with a label of their own first. The others have the teacher's.
        dev: The dev texts, all with labels of their own, or all with the teacher's.
        labelled: The number of train texts with a label of their own.
        raw: The teacher's raw outputs for the train texts; NaN for texts that it says nothing about.
            *Shape:* (train texts, ...)
        dev_raw: Its raw outputs for the dev texts, to which probabilities are fitted; None if these have labels.
            *Shape:* (dev texts, ...)
        facts: What the card of a head says about the teacher.
        encoder: The teacher's own encoder, if it has the form of the trunk: heads start from its layers. None has them
            start from the trunk's.
        states: Whether heads also learn that encoder's states after their layers.
        temperature: The temperature of distillation.
        source: The file of the texts without labels.
        variants: The number of changed copies of each train text that the teacher was asked about.
        more: The number of train texts that have no label of their own, and are no copies.
    """

    train: Examples
    dev: Examples
    labelled: int
    raw: RawTargets
    dev_raw: RawTargets | None
    facts: Mapping[str, Any]
    encoder: Trunk | None = None
    states: bool = False
    temperature: float = TEMPERATURE
    source: str = "texts"
    variants: int = 0
    more: int = 0

    def data(self, task: Task, split: Split) -> float | str:
        """Return where the texts of train or dev are from, as the card says: what the task names, their file, copies.

        Args:
            task: The task.
            split: The split.
        """
        named: float | str = getattr(task, split)
        if split == "dev":
            return named if self.dev_raw is None else self.source
        parts = [str(named)] if self.labelled else []
        if self.more:
            parts.append(self.source)
        if self.variants:
            parts.append(f"{self.variants} changed {'copy' if self.variants == 1 else 'copies'} of each text")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Answered:
    texts: tuple[Any, ...]
    raw: RawTargets
    offsets: Offsets | None


def make_lessons(
    task: Task,
    teacher: SoftTeacher,
    texts: Texts,
    trunk: Trunk,
    *,
    max_length: int,
    train: Examples | None = None,
    dev: Examples | None = None,
    test: Examples | None = None,
    dev_share: float = DEV_SHARE,
    encoder: Trunk | None = None,
    variants: int = 0,
    source: str = "texts",
    progress: ProgressCallback = silent,
) -> Lessons:
    """Ask a teacher about all texts, and put together what the heads of a task learn.

    Texts without labels are split by their hashes, so that a text stays where it is when others are added.

    Args:
        task: The task.
        teacher: The teacher.
        texts: Texts without labels; those that the teacher brings itself come behind them.
        trunk: The trunk.
        max_length: The longest text in tokens.
        train: Labelled train data, if there are any.
        dev: Labelled dev data; None keeps a share of the texts.
        test: Labelled test data, whose texts are left out of what is learned.
        dev_share: That share.
        encoder: See ``Lessons``.
        variants: The number of changed copies of each train text, which the teacher labels, too; see ``varied``.
        source: The file of the texts, for messages and the card.
        progress: Called as the teacher goes on.

    Raises:
        UserError: No text is left for train or dev, or the teacher does not fit the task.
    """
    kind = get_kind(task.kind)
    known = {normalized(text) for rows in (train, dev, test) if rows is not None for text in rows.texts}
    unlabelled = {normalized(text): text for text in [*texts, *teacher.texts]}
    free = [text for key, text in unlabelled.items() if key not in known]
    dev_texts = [] if dev is not None else [text for text in free if split_number(text) < dev_share]
    kept = set(dev_texts)
    learned = [text for text in free if text not in kept]
    own_texts = [*(train.texts if train is not None else ()), *learned]
    # A copy may come out as another text: dev texts must not be learned, and what is learned already has its label.
    there = known | {normalized(text) for text in free}
    copies = [text for text in varied(own_texts, variants) if normalized(text) not in there]
    train_texts = [*own_texts, *copies]

    def ask(some: Sequence[Any], split: Split) -> _Answered:
        if not some:
            raise UserError(f"{source}: it leaves no texts for {split}: give more texts")
        offsets = token_offsets(trunk.tokenizer(), some, max_length) if kind.by_token else None
        try:
            return _Answered(tuple(some), teacher.raw(some, task, offsets, progress), offsets)
        except ValueError as error:
            raise UserError(f"task {task.name}: {error}") from error

    def labels(answered: _Answered, first: int = 0) -> list[Any]:
        offsets = answered.offsets
        return [
            kind.codec.encoded_of(
                answered.raw[row],
                task,
                answered.texts[row] if isinstance(answered.texts[row], str) else "",
                None if offsets is None else offsets[row],
            )
            for row in range(first, len(answered.texts))
        ]

    labelled = len(train) if train is not None else 0
    answered = ask(train_texts, "train")
    given = is_given(answered.raw)
    if not given.any():
        raise _says_nothing(source, "train")
    covered = int(given[:labelled].sum())
    left_out = len(learned) - int(given[labelled : labelled + len(learned)].sum())
    given[:labelled] = True
    answered = _some(answered, given)
    targets = [*(train.targets if train else ()), *labels(answered, labelled)]
    taught = _examples(source, answered, targets, teacher, left_out, "train")
    if train is not None:
        taught = _beside(taught, train, covered)
    dev_raw = None
    if dev is None:
        about = ask(dev_texts, "dev")
        about = _some(about, is_given(about.raw))
        if not about.texts:
            raise _says_nothing(source, "dev")
        left_out = len(dev_texts) - len(about.texts)
        dev, dev_raw = _examples(source, about, labels(about), teacher, left_out, "dev"), about.raw
    states = encoder is not None and _read_alike(trunk, encoder, taught.texts, max_length)
    return Lessons(
        taught,
        dev,
        labelled,
        answered.raw,
        dev_raw,
        teacher.facts,
        encoder,
        states,
        source=source,
        variants=variants,
        more=int(given[labelled : labelled + len(learned)].sum()),
    )


def _read_alike(trunk: Trunk, encoder: Trunk, texts: Texts, max_length: int) -> bool:
    """Return whether an encoder reads the same tokens as the trunk, so that their states are about the same things."""
    if encoder.max_positions < max_length:
        return False
    try:
        ours, theirs = (tokenise(one, texts, max_length) for one in (trunk, encoder))
    except UserError:  # it cannot tell the texts of a pair apart
        return False
    return np.array_equal(ours.lengths, theirs.lengths) and np.array_equal(ours.ids, theirs.ids)


def varied(texts: Sequence[Any], copies: int, seed: int = 0) -> list[Any]:
    """Return copies of texts with some words left out and some replaced by words of other texts.

    What a teacher says about them shows more of what it goes by than the texts alone (Tang et al. 2019, "Distilling
    Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv:1903.12136).

    Args:
        texts: Texts, or pairs of texts.
        copies: The number of copies of each.
        seed: The seed of what is drawn.
    """
    draw = random.Random(seed)
    words = [word for text in texts for word in " ".join(text if isinstance(text, tuple) else (text,)).split()]

    def changed(text: str) -> str:
        found = []
        for word in text.split():
            chance = draw.random()
            if chance >= _LEFT_OUT:
                found.append(draw.choice(words) if chance < _LEFT_OUT + _REPLACED else word)
        return " ".join(found) or text

    return [
        tuple(changed(part) for part in text) if isinstance(text, tuple) else changed(text)
        for _ in range(copies)
        for text in texts
    ]


def _says_nothing(source: str, split: Split) -> UserError:
    return UserError(f"{source}: the teacher says nothing about any of the {split} texts: give it texts that it knows")


def _some(answered: _Answered, given: NDArray[np.bool_]) -> _Answered:
    rows, offsets = np.flatnonzero(given), answered.offsets
    return _Answered(
        tuple(answered.texts[row] for row in rows),
        answered.raw[rows],
        None if offsets is None else [offsets[row] for row in rows],
    )


def _examples(
    source: str, answered: _Answered, targets: list[Any], teacher: SoftTeacher, left_out: int, split: Split
) -> Examples:
    digest = hashlib.sha256(teacher.identity.encode())
    digest.update(repr((answered.texts, targets)).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(answered.raw).tobytes())
    note = f"{source}: left out {left_out:,} {split} texts without labels, about which the teacher says nothing"
    return Examples(source, answered.texts, tuple(targets), digest.hexdigest(), left_out, (note,) if left_out else ())


def _beside(taught: Examples, own: Examples, covered: int) -> Examples:
    notes = (*own.notes, *taught.notes)
    if covered < len(own):
        notes += (
            f"{taught.source}: the teacher says something about {covered:,} of {len(own):,} labelled train texts; the "
            "others are learned from their labels alone",
        )
    left_out = own.left_out + taught.left_out
    return Examples(f"{own.source}, {taught.source}", taught.texts, taught.targets, taught.sha256, left_out, notes)
