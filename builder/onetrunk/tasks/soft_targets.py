"""Soft targets: what a teacher from outside says about texts, in place of labels or beside them.

A teacher is anything that knows more about a text than a label says: a fine-tuned model, or a file of probabilities
that a language model or several people gave. For each text it returns raw outputs in the form of a head's own, so that
``TrainingSpec.soft_loss`` compares both: logits of labels, or a number on the scale from 0 to 1 for regression.
Probabilities are turned into such outputs by ``raw_of_probabilities``. A text that the teacher says nothing about has
a row of NaN; it is learned from its label alone, if it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onetrunk.progress import ProgressCallback, silent
from onetrunk.tasks.kinds.base import KindConfig, Offsets

if TYPE_CHECKING:
    from onetrunk.tasks.examples import Texts

RawTargets = NDArray[np.float32]
"""Raw outputs of a teacher. *Shape:* (rows, outputs), by token (rows, tokens, outputs) with zeros at padding."""

# A probability of 0 or 1 has no finite logit. This is the least that a teacher's own softmax tells apart.
_LEAST = 1e-6


class SoftTeacher(Protocol):
    """A teacher from outside."""

    @property
    def identity(self) -> str:
        """A text that is equal only for teachers that say the same: a hash over the model or the file."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the card of a head says about its teacher: name, hash, and what else is known. JSON values."""

    @property
    def texts(self) -> Texts:
        """The texts that the teacher brings itself, as a file of soft labels does; empty for a model."""

    def raw(
        self,
        texts: Texts,
        config: KindConfig,
        offsets: Offsets | None = None,
        progress: ProgressCallback = silent,
    ) -> RawTargets:
        """Return what the teacher says about texts, as raw outputs of the task's kind.

        Args:
            texts: Texts, or pairs of texts.
            config: The task's configuration: the order of the outputs is that of its labels.
            offsets: The texts' tokens as the trunk reads them, for a kind that answers by token.
            progress: Called as the teacher goes on.

        Returns:
            A row of NaN where the teacher says nothing. *Shape:* (texts, outputs), by token (texts, tokens, outputs)
        """


def raw_of_probabilities(probabilities: NDArray[Any], *, independent: bool) -> RawTargets:
    """Return the raw outputs of which probabilities are the softmax, or the sigmoid; NaN stays NaN.

    Args:
        probabilities: Probabilities of labels; those of a row sum to 1 unless they are independent.
            *Shape:* (..., labels)
        independent: Whether each label holds for itself, as in kind ``multilabel``.

    Returns:
        *Shape:* (..., labels)
    """
    bounded = np.clip(probabilities.astype(np.float64), _LEAST, 1 - _LEAST)
    raw = np.log(bounded) - np.log1p(-bounded) if independent else np.log(bounded)
    return raw.astype(np.float32)


def raw_above(raw: RawTargets, thresholds: Sequence[float]) -> RawTargets:
    """Return raw outputs of labels shifted so that each holds from one half, as in a task, and not from its threshold.

    Args:
        raw: Raw outputs of independent labels. *Shape:* (..., labels)
        thresholds: The probability from which each label holds.

    Returns:
        *Shape:* (..., labels)
    """
    return raw - raw_of_probabilities(np.array(thresholds, dtype=np.float64), independent=True)


def is_given(raw: RawTargets) -> NDArray[np.bool_]:
    """Return which rows a teacher says something about. *Shape:* (rows, ...) to (rows,)."""
    found: NDArray[np.bool_] = ~np.isnan(raw).reshape(len(raw), -1).any(axis=1)
    return found


def order_of(labels: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Return the place of each of the task's labels among the teacher's.

    Args:
        labels: The task's labels.
        theirs: The teacher's labels.

    Raises:
        ValueError: The teacher does not have exactly these labels; the message says which differ.
    """
    if sorted(labels) != sorted(theirs):
        missing, more = sorted(set(labels) - set(theirs)), sorted(set(theirs) - set(labels))
        parts = [f"lacks {', '.join(missing)!s:.100}"] if missing else []
        parts += [f"has {', '.join(more)!s:.100}"] if more else []
        raise ValueError(f"the teacher {' and '.join(parts)}; the task's labels are {', '.join(labels)!s:.100}")
    return [list(theirs).index(label) for label in labels]
