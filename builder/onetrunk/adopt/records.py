"""Records of adoptions: how a head was looked for, what came of it, and how far it answers as its teacher does."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from onetrunk.tasks import Recipe

Start = Literal["teacher", "trunk"]
"""Whose layers a head starts from."""

# With so many texts, copies of them were of little use.
_ENOUGH_TEXTS, _MOST_COPIES = 10_000, 4


class AdoptSettings(BaseModel):
    """How a head is looked for, and when it is good enough.

    Attributes:
        kept: The least share of the teacher's own metric that a head keeps, on labelled dev data.
        agreement: Where there are none, the least share of texts on which both answer alike; for a number, the least
            correlation.
        divergence: Where there are none, the greatest mean divergence of the head's probabilities from the teacher's,
            in nats.
        stop_by: What ends the search where there are labelled data: the head's ``score`` on them, or ``agreement``, as
            without them.
        dev_share: The share of the texts that nothing is learned from.
        epochs: Passes over the texts; one-layer heads, whose steps are nearly free, take three times as many.
        learning_rate: Of heads of several layers that learn from answers alone. Those that learn the teacher's states,
            too, bear three times that, and heads of one layer five times.
        max_length: The longest text in tokens.
        variants: The number of changed copies of each text that heads learn from as well; None takes as many as make
            few texts enough.
        thorough: Whether to go on with heads that cost nearly as much as the whole model.
        seed: The seed of the trainings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: float = 0.99
    agreement: float = 0.97
    divergence: float = 0.1
    stop_by: Literal["score", "agreement"] = "score"
    dev_share: float = 0.1
    epochs: int = 4
    learning_rate: float = 1e-4
    max_length: int = 128
    variants: int | None = None
    thorough: bool = False
    seed: int = 0

    def floor(self, *, scored: bool, correlation: bool) -> str:
        """Return the floor in words.

        Args:
            scored: Whether the score on labelled data counts.
            correlation: Whether the answers are numbers.
        """
        if scored:
            return f"{100 * self.kept:g}% of the model's own score on the labelled texts"
        if correlation:
            return f"a correlation of {self.agreement:g}"
        return (
            f"{100 * self.agreement:g}% of the texts alike, and a mean divergence of {self.divergence:g} nats at most"
        )

    def candidates(self, depth: int) -> list[tuple[int, int]]:
        """Return the heads to try on a trunk of so many layers, as tap and layers, the cheapest first.

        Training a head of one layer costs next to nothing, so none is ruled out before. The last two leave little of
        the trunk to be shared.
        """
        middle, third, sixth = depth // 2, depth // 3, depth // 6
        quick = [(middle, 1), (third, 2), (third, middle), (third, depth - third)]
        costly = [(sixth, depth - sixth), (0, depth)] if self.thorough else []
        # On a trunk of one layer or two, some are the same, or not there.
        there = dict.fromkeys((tap, layers) for tap, layers in [*quick, *costly] if 1 <= layers <= depth - tap)
        return sorted(there, key=lambda head: head[1])

    def copies(self, texts: int) -> int:
        """Return how many changed copies of each text heads learn from.

        Args:
            texts: The number of texts.
        """
        if self.variants is not None:
            return self.variants
        return min(_MOST_COPIES, max(0, round(_ENOUGH_TEXTS / max(texts, 1)) - 1))

    def recipe(self, tap: int, layers: int, *, states: bool = False) -> Recipe:
        """Return how a head is trained.

        Args:
            tap: Its tap.
            layers: The number of its layers.
            states: Whether it also learns the teacher's states.
        """
        folded = layers == 1
        return Recipe(
            tap=tap,
            layers=layers,
            epochs=self.epochs * (3 if folded else 1),
            learning_rate=self.learning_rate * (5 if folded else 3 if states else 1),
            dropout=0.0,
            seed=self.seed,
            max_length=self.max_length,
        )


class Attempt(BaseModel):
    """One head that was tried.

    Attributes:
        tap: Its tap.
        layers: Its number of layers.
        agreement: The share of dev texts on which it answers as the teacher does; for a number the correlation.
        constant_agreement: The share on which the teacher's commonest answer alone would agree; None for a number.
        divergence: The mean divergence of its probabilities from the teacher's, in nats; None without probabilities.
        score: Its score on labelled dev data; None without.
        seconds: What its training took.
        run: The key of its run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: int
    layers: int
    agreement: float
    constant_agreement: float | None = None
    divergence: float | None
    score: float | None
    seconds: float
    run: str

    @property
    def is_trivial(self) -> bool:
        """Whether the commonest answer alone would agree nearly as often: more than half as many texts as it misses.

        Where a model gives nearly all texts the same answer, a head that always gives it agrees on nearly all of them,
        and is of no use.
        """
        constant = self.constant_agreement
        return constant is not None and constant < 1 and 1 - self.agreement > (1 - constant) / 2


class LabelAgreement(BaseModel):
    """On how many dev texts teacher and head have one label, or of a tagger spans of one type.

    Attributes:
        label: The label.
        teacher: The number of texts that have it by the teacher.
        head: The number that have it by the head.
        both: The number that have it by both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    teacher: int
    head: int
    both: int


class Difference(BaseModel):
    """A text on which teacher and head differ.

    Attributes:
        text: The text, or both of a pair, cut where it is long.
        teacher: The teacher's answer.
        head: The head's.
        distance: How far they are apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | tuple[str, str]
    teacher: str
    head: str
    distance: float


class AdoptedModel(BaseModel):
    """The record of an adoption: what the report is made of.

    Attributes:
        key: A hash over all that it depends on.
        name: The name of the task, and of the bundle.
        source: The folder or hub id of the model.
        sha256: The hash of the model.
        family: Its family.
        kind: The kind of the task.
        form: Whether it reads texts or pairs.
        labels: The labels.
        texts: The file of the texts.
        train_texts: The number of texts that were learned from.
        copies: The number of changed copies of each that were, too.
        dev_texts: The number of those that were not.
        start: Where heads started from: ``teacher`` or ``trunk``.
        learned_states: Whether the head learned the model's states after its layers, too, and not its answers alone.
        tap: The head's tap.
        layers: Its number of layers.
        agreement: See ``Attempt``.
        agreement_measure: ``share`` or ``correlation``.
        constant_agreement: See ``Attempt``.
        by_label: How far both agree on each label; empty for a number.
        divergence: See ``Attempt``.
        metric: The metric on labelled dev data.
        labelled_rows: The number of these; 0 if there are none.
        teacher_score: The teacher's score on them.
        head_score: The head's.
        floor: The floor, in words.
        reached: Whether it was reached.
        attempts: What was tried.
        differences: The dev texts on which their answers differ, those that are furthest apart first; some 20 at most.
        teacher_bytes: The size of the model's weights.
        head_bytes: The size of the bundle's.
        seconds: What the adoption took in the session that ended it, without what was found on disk.
        notes: What a user should know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    name: str
    source: str
    sha256: str
    family: str
    kind: str
    form: str
    labels: tuple[str, ...] | None
    texts: str
    train_texts: int
    copies: int = 0
    dev_texts: int
    start: Start
    learned_states: bool = False
    tap: int
    layers: int
    agreement: float
    agreement_measure: str
    constant_agreement: float | None = None
    by_label: tuple[LabelAgreement, ...] = ()
    divergence: float | None
    metric: str
    labelled_rows: int
    teacher_score: float | None
    head_score: float | None
    floor: str = ""
    reached: bool
    attempts: tuple[Attempt, ...]
    differences: tuple[Difference, ...]
    teacher_bytes: int
    head_bytes: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """Where the agreement on all such texts probably lies (95%, Wilson 1927); None for a correlation."""
        if self.agreement_measure != "share" or not self.dev_texts:
            return None
        n, share, z = self.dev_texts, self.agreement, 1.96
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def kept(self) -> float | None:
        """The share of the teacher's score that the head keeps; None without labels, or if the teacher has none."""
        if self.teacher_score is None or self.head_score is None or self.teacher_score <= 0:
            return None
        return self.head_score / self.teacher_score
