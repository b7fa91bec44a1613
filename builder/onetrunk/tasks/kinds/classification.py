"""Classification: one label of several, with calibrated probabilities.

Sources: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 3 and 4.2, for temperature scaling and
the expected calibration error. A temperature that follows the entropy is from Balanya, Maroñas and Ramos 2022,
"Adaptive Temperature Scaling for Robust Calibration of Deep Neural Networks". Smoothing the labels that something is
fitted to is from Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2; here they are smoothed
towards the head's own probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from onetrunk.protocol.reference import Reference
from onetrunk.tasks.kinds.base import (
    AnswerSpec,
    Kind,
    KindConfig,
    LabelCodec,
    Offsets,
    Options,
    OutputSpec,
    Scores,
    TrainingSpec,
    label_index,
    labels_of,
)
from onetrunk.tasks.kinds.soft import SoftLabel, Sparse, dense, sparse
from onetrunk.tasks.kinds.summary import histogram, mean_share, rounded

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

ArrayT = TypeVar("ArrayT", "Tensor", NDArray[np.float64])

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
# The bounded optimizer stops within this factor of a bound if the likelihood has no maximum between them.
_NEAR_BOUND = 1.01
# This many rows, labelled by the head's own probabilities, are added to the dev rows. Without them, a few rows that are
# all right would make a head certain, and a single wrong one would make it clueless.
_PRIOR_ROWS = 10
# A temperature that follows the entropy is kept if unseen labels get likelier by so many standard errors, the one-sided
# bound of 95%, on so many rows. A few rows, all surely right, would have one by which a surely wrong one is dear.
_LEAST_ERRORS, _LEAST_ROWS = 1.645, 200
_LEAST_GAIN_NATS = 1e-4
MAX_ENTROPY_POWER = 2.0
_LEAST_ENTROPY = 1e-3
_FIRST_POWER = 0.3
# It is found on so many rows at most.
_MOST_ROWS = 20_000
_DIGITS = 4
_CALIBRATION_BINS = 15
_FOLDS = 5
_CHANCE_DRAWS = 50
_SUM_TOLERANCE = 1e-3

# Strict, so that neither a text nor a boolean is taken for a number.
_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class ClassificationOptions(Options):
    """Options of a classification task.

    Attributes:
        class_weights: The weight of a label's rows in the loss: ``balanced`` gives all labels the same total weight; a
            table maps labels to weights, 1 for labels that it does not name.
        none_below: If the best label's probability is lower, the answer is "none of these". It must exceed 1 / labels,
            which the best probability always reaches.
    """

    class_weights: Literal["balanced"] | dict[str, _Weight] | None = None
    none_below: float | None = Field(default=None, gt=0, lt=1, strict=True)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _balanced_or_a_table(cls, given: object) -> object:
        if given not in (None, "balanced") and not isinstance(given, dict):
            raise ValueError("must be 'balanced', or a table of labels as in {alarm = 3, play = 0.5}")
        return given


class ClassificationCodec(LabelCodec):
    """Labels are encoded as their indices, and soft ones as the probabilities of indices."""

    uses_labels: ClassVar[bool] = True
    accepts_soft: ClassVar[Literal["one", "several"] | None] = "one"

    def encode(self, label: object, config: KindConfig, text: str = "") -> int | Sparse:
        """Return the label's index, or the indices and probabilities of a soft label."""
        if isinstance(label, SoftLabel):
            return sparse(label, lambda one: label_index(one, config))
        return label_index(label, config)

    def targets(
        self, encoded: Sequence[int | Sparse], config: KindConfig, offsets: Offsets | None = None
    ) -> NDArray[Any]:
        """Return label indices. *Shape:* (rows,); with soft labels, probabilities. *Shape:* (rows, labels)."""
        if any(isinstance(one, tuple) for one in encoded):
            return dense([_as_sparse(one) for one in encoded], len(labels_of(config)))
        return np.array(encoded, dtype=np.int64)

    def hard(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Return label indices; of soft targets, those of the most probable labels. *Shape:* (rows,)."""
        found: NDArray[np.int64] = targets.argmax(axis=-1) if targets.ndim == 2 else targets
        return found

    def encoded_of(
        self,
        raw: NDArray[np.float32],
        config: KindConfig,
        text: str = "",
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> int:
        """See ``LabelCodec.encoded_of``: the index of the likeliest label."""
        return int(raw.argmax())

    def unused_labels(self, encoded: Sequence[int | Sparse], config: KindConfig) -> list[str]:
        """Return the labels that no row has."""
        present = {index for one in encoded for index, weight in _as_sparse(one) if weight > 0}
        return [label for index, label in enumerate(labels_of(config)) if index not in present]


class ClassificationTraining(TrainingSpec):
    """Cross entropy, also against soft targets, and a temperature fitted on the dev data."""

    def check(self, config: KindConfig) -> None:
        """Check that class weights name labels of the task.

        Raises:
            ValueError: They name others.
        """
        weights = ClassificationOptions.read(config.options).class_weights
        if isinstance(weights, dict) and (unknown := sorted(set(weights) - set(labels_of(config)))):
            raise ValueError(f"options.class_weights names {', '.join(unknown):.60}, which labels does not have")

    def row_weights(self, targets: NDArray[Any], config: KindConfig) -> NDArray[np.float32] | None:
        """Return the rows' weights by the option ``class_weights``. *Shape:* as ``targets``.

        A soft label counts by its probabilities: ten rows of 0.8 and 0.2 are worth eight rows of the one label and two
        of the other.
        """
        weights, labels = ClassificationOptions.read(config.options).class_weights, labels_of(config)
        if weights is None:
            return None
        if weights == "balanced":
            soft = targets.ndim == 2
            counts = targets.sum(axis=0, dtype=np.float64) if soft else np.bincount(targets, minlength=len(labels))
            # The weight of a label without rows is never used.
            by_label = len(targets) / (np.count_nonzero(counts) * np.where(counts > 0, counts, 1))
        else:
            by_label = np.array([weights.get(label, 1.0) for label in labels])
        by_label = by_label.astype(np.float32)
        return np.tile(by_label, (len(targets), 1)) if targets.ndim == 2 else by_label[targets]

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross entropy, as the weighted mean over the rows."""
        from torch.nn import functional

        if weights is None:
            return functional.cross_entropy(raw, targets)
        if targets.ndim == 2:
            shares = weights * targets
            return functional.cross_entropy(raw, shares, reduction="sum") / shares.sum()
        losses = functional.cross_entropy(raw, targets, reduction="none")
        return (weights * losses).sum() / weights.sum()

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return T^2 times the cross entropy with the teacher's softened probabilities (section 2 of the paper)."""
        import torch
        from torch.nn import functional

        softened = torch.softmax(teacher / temperature, dim=-1)
        return temperature**2 * functional.cross_entropy(raw / temperature, softened)

    def fit_on_dev(self, raw: Tensor, targets: NDArray[Any], config: KindConfig) -> dict[str, Any]:
        """Fit the temperature that calibrates the probabilities; see ``calibrate``."""
        return calibrate(raw.numpy(), targets)

    def fit_to_teacher(
        self, raw: Tensor, teacher: Tensor, targets: NDArray[np.int64], config: KindConfig
    ) -> dict[str, Any]:
        """See ``TrainingSpec.fit_to_teacher``: a temperature for its probabilities, not for its likeliest labels."""
        from scipy.special import softmax

        return calibrate(raw.numpy(), softmax(teacher.double().numpy(), axis=-1))

    def divergence(self, raw: Tensor, teacher: Tensor, config: KindConfig) -> Tensor:
        """Return the divergence of the calibrated probabilities. *Shape:* (rows,)."""
        import torch

        ours = torch.log_softmax(calibrated(raw, config.fitted), dim=-1)
        theirs = torch.log_softmax(teacher, dim=-1)
        return (theirs.exp() * (theirs - ours)).sum(dim=-1)


class ClassificationOutput(OutputSpec):
    """Probabilities over the labels, which sum to 1."""

    def check(self, config: KindConfig) -> None:
        """Check the option ``none_below``, and a fitted temperature.

        Raises:
            ValueError: ``none_below`` can have no effect, or ``calibrate`` cannot return such a temperature.
        """
        none_below, labels = ClassificationOptions.read(config.options).none_below, labels_of(config)
        if none_below is not None and none_below <= 1 / len(labels):
            raise ValueError(
                f"options.none_below = {none_below:g} has no effect: the likeliest of {len(labels)} labels has "
                f"{1 / len(labels):.3g} or more"
            )
        temperature = config.fitted.get("temperature", 1.0)
        # JSON's true is a number to Python.
        if type(temperature) not in (int, float) or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"fitted.temperature must be a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; "
                f"found {temperature!r:.60}"
            )
        power = config.fitted.get("entropy_power", 0.0)
        if type(power) not in (int, float) or not 0 <= power <= MAX_ENTROPY_POWER:
            raise ValueError(
                f"fitted.entropy_power must be a number from 0 to {MAX_ENTROPY_POWER:g}; found {power!r:.60}"
            )

    def num_outputs(self, config: KindConfig) -> int:
        """Return the number of labels."""
        return len(labels_of(config))

    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return probabilities, calibrated if a temperature was fitted."""
        import torch

        return torch.softmax(calibrated(raw, config.fitted), dim=-1)

    def client_info(self, config: KindConfig) -> dict[str, Any]:
        """Return the probability below which the answer is none of the labels."""
        none_below = ClassificationOptions.read(config.options).none_below
        return {} if none_below is None else {"none_below": none_below}

    def describe(self, config: KindConfig) -> str:
        """List the labels."""
        return ", ".join(f"`{label}`" for label in labels_of(config))


class ClassificationAnswers(AnswerSpec):
    """The answer is the likeliest label."""

    def predictions(self, scores: Scores, config: KindConfig) -> NDArray[np.int64]:
        """Return the indices of the likeliest labels. *Shape:* (rows, labels) to (rows,)."""
        return np.asarray(scores.argmax(axis=-1), dtype=np.int64)

    def labels_held(self, scores: Scores, config: KindConfig) -> NDArray[np.bool_]:
        """Return the likeliest label of each text. *Shape:* (rows, labels) to (rows, labels)."""
        found: NDArray[np.bool_] = self.predictions(scores, config)[:, None] == np.arange(len(labels_of(config)))
        return found

    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return the likeliest label and its probability."""
        return f"{labels_of(config)[int(scores.argmax())]} {scores.max():.2f}"

    def reference(self, scores: Scores, config: KindConfig) -> Reference:
        """Return how often each label is the answer, and how sure the head is of it."""
        from scipy.special import entr

        probabilities, labels = scores.astype(np.float64), labels_of(config)
        confidence = probabilities.max(axis=-1)
        none = confidence < (ClassificationOptions.read(config.options).none_below or 0)
        counts = np.bincount(probabilities.argmax(axis=-1)[~none], minlength=len(labels))
        return Reference(
            rows=len(scores),
            labels=rounded(counts / len(scores)),
            none_of_these=mean_share(none),
            confidence=histogram(confidence),
            entropy=mean_share(entr(probabilities).sum(axis=-1) / np.log(len(labels))),
        )

    def fault(self, scores: Scores, config: KindConfig) -> str | None:
        """Return whether scores are not finite, or not probabilities."""
        fault = super().fault(scores, config)
        if fault is None and (scores.min() < 0 or not np.abs(scores.sum(axis=-1) - 1).max() <= _SUM_TOLERANCE):
            return "its scores are not probabilities that sum to 1: export it with its softmax"
        return fault


def _as_sparse(encoded: int | Sparse) -> Sparse:
    return encoded if isinstance(encoded, tuple) else ((encoded, 1.0),)


def _as_probabilities(targets: NDArray[Any], labels: int) -> NDArray[np.float64]:
    """Return targets of any form as probabilities. *Shape:* (rows,) or (rows, labels) to (rows, labels)."""
    found: NDArray[np.float64] = np.eye(labels)[targets] if targets.ndim == 1 else targets.astype(np.float64)
    return found


def calibrated(raw: Tensor, fitted: Mapping[str, Any]) -> Tensor:
    """Return raw outputs divided by the temperature that was fitted; unchanged if none was.

    With an ``entropy_power``, a row's temperature is ``temperature * entropy ** entropy_power``, of the entropy of the
    raw outputs' softmax as a share of the greatest there is: the surer a head is, the lower. It is at least
    ``MIN_TEMPERATURE``. The likeliest label stays the same.

    *Shape:* (..., labels)

    Args:
        raw: The raw outputs.
        fitted: What was fitted; see ``calibrate``.
    """
    import torch

    if (temperature := fitted.get("temperature")) is None:
        return raw
    divisor: float | Tensor = float(temperature)
    if power := fitted.get("entropy_power"):
        logs = torch.log_softmax(raw, dim=-1)
        entropy = -(logs.exp() * logs).sum(dim=-1, keepdim=True) / math.log(raw.shape[-1])
        divisor = _row_temperatures(entropy.clamp(min=_LEAST_ENTROPY), temperature, power)
    found: Tensor = raw / divisor
    return found


def _row_temperatures(entropy: ArrayT, temperature: float, power: float) -> ArrayT:
    """Return the rows' temperatures by their entropy, which is not 0. *Shape of both:* (..., 1)."""
    return (temperature * entropy**power).clip(min=MIN_TEMPERATURE)


def calibrate(raw: NDArray[Any], targets: NDArray[Any]) -> dict[str, Any]:
    """Find the temperature by which raw outputs must be divided so that the dev labels are likeliest.

    It follows the entropy of each row (``calibrated``) if that makes labels likelier to which it was not fitted.

    Args:
        raw: Raw outputs. *Shape:* (rows, labels)
        targets: Label indices. *Shape:* (rows,); or the probabilities of labels. *Shape:* (rows, labels)

    Returns:
        ``temperature``, ``entropy_power`` if it follows the entropy, ``calibration_error`` before and after, and a
        ``note`` if the temperature is at a bound. The error after is cross-fitted: each fifth of the rows is measured
        with the temperature of the others. With hard labels, ``by_chance`` beside it is the error that a perfectly
        calibrated head would have on as many rows. With soft targets also ``soft_dev``; see ``_soft_scores``.
    """
    from scipy.special import softmax

    logits, expected = raw.astype(np.float64), _as_probabilities(targets, raw.shape[-1])
    unseen = _cross_fitted(logits, expected, _plain_fit)
    fit = _plain_fit
    if len(logits) >= _LEAST_ROWS:
        other = _cross_fitted(logits, expected, _entropy_fit)
        gain = _losses(unseen, expected) - _losses(other, expected)
        noise = float(gain.std(ddof=1)) / math.sqrt(len(gain))
        if float(gain.mean()) > max(_LEAST_ERRORS * noise, _LEAST_GAIN_NATS):
            fit, unseen = _entropy_fit, other
    best = fit(logits, expected)
    error = {
        "before": round(calibration_error(softmax(logits, axis=-1), expected), _DIGITS),
        "after": round(calibration_error(softmax(unseen, axis=-1), expected), _DIGITS),
    }
    if targets.ndim == 1:
        error["by_chance"] = round(_error_by_chance(softmax(unseen, axis=-1)), _DIGITS)
    fitted: dict[str, Any] = {"temperature": best.temperature, "calibration_error": error}
    if best.entropy_power:
        fitted["entropy_power"] = best.entropy_power
    if targets.ndim == 2:
        fitted["soft_dev"] = _soft_scores(softmax(best.divide(logits), axis=-1), expected)
    # With a power, the one fitted is that of a row that knows nothing, and sure rows may have the least there is.
    usual = float(np.median(best.temperatures(_entropy(logits))))
    if best.temperature > MIN_TEMPERATURE * _NEAR_BOUND and usual < MAX_TEMPERATURE / _NEAR_BOUND:
        return fitted
    bound = f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
    return {**fitted, "note": f"the temperature is at its bound, {bound}: do not trust the probabilities"}


def _soft_scores(probabilities: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    """Compare probabilities with soft targets. *Shape of both:* (rows, labels).

    Returns:
        ``expected_accuracy``: the mean probability that the data give to the answer; ``best_accuracy``: that of a head
        that is always right; ``divergence_nats``: the mean Kullback-Leibler divergence of the head's probabilities from
        those of the data.
    """
    from scipy.special import rel_entr

    answers = probabilities.argmax(axis=-1)
    divergence = rel_entr(expected, np.maximum(probabilities, np.finfo(np.float64).tiny)).sum(axis=-1)
    return {
        "expected_accuracy": round(float(expected[np.arange(len(answers)), answers].mean()), _DIGITS),
        "best_accuracy": round(float(expected.max(axis=-1).mean()), _DIGITS),
        "divergence_nats": round(float(divergence.mean()), _DIGITS),
    }


@dataclass(frozen=True)
class _Fit:
    """A temperature, and the power of the entropy that it follows."""

    temperature: float
    entropy_power: float = 0.0

    def divide(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return logits divided by their rows' temperatures, as ``calibrated`` does. *Shape:* (rows, labels)."""
        found: NDArray[np.float64] = logits / self.temperatures(_entropy(logits))
        return found

    def temperatures(self, entropy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rows' temperatures by what ``_entropy`` returns. *Shape:* (rows, 1)."""
        return _row_temperatures(entropy, self.temperature, self.entropy_power)


def _entropy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row's softmax, as a share of the greatest there is. *Shape:* (rows, 1)."""
    from scipy.special import log_softmax

    logs = log_softmax(logits, axis=-1)
    share = -(np.exp(logs) * logs).sum(axis=-1, keepdims=True) / math.log(logits.shape[-1])
    found: NDArray[np.float64] = np.maximum(share, _LEAST_ENTROPY)
    return found


def _cross_fitted(
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    fit: Callable[[NDArray[np.float64], NDArray[np.float64]], _Fit],
) -> NDArray[np.float64]:
    """Return the logits divided by the temperatures that are fitted on the rows of all folds but their own.

    *Shape:* (rows, labels)
    """
    # Data may be sorted, so rows are put into folds at random; always in the same way.
    folds = np.random.default_rng(0).permutation(len(logits)) % _FOLDS
    found = logits.copy()
    for fold in range(_FOLDS):
        inside = folds == fold
        if inside.any() and not inside.all():
            found[inside] = fit(logits[~inside], targets[~inside]).divide(logits[inside])
    return found


def _plain_fit(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> _Fit:
    """Return the one temperature by which the labels are likeliest.

    Args:
        logits: Raw outputs. *Shape:* (rows, labels)
        targets: The probabilities of labels. *Shape:* (rows, labels)
    """
    from scipy.optimize import minimize_scalar

    smoothed = _smoothed(logits, targets)
    found = minimize_scalar(
        lambda log_temperature: _loss(logits / np.exp(log_temperature), smoothed),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
    )
    return _Fit(round(float(np.exp(found.x)), _DIGITS))


def _entropy_fit(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> _Fit:
    """Return the temperature and the power of the entropy by which the labels are likeliest.

    *Shape of both:* (rows, labels)
    """
    from scipy.optimize import minimize

    some = np.random.default_rng(0).permutation(len(logits))[:_MOST_ROWS]
    logits, smoothed = logits[some], _smoothed(logits[some], targets[some])
    entropy = _entropy(logits)  # does not depend on what is fitted
    found = minimize(
        lambda both: _loss(logits / _Fit(float(np.exp(both[0])), float(both[1])).temperatures(entropy), smoothed),
        x0=(np.log(_plain_fit(logits, targets[some]).temperature), _FIRST_POWER),
        bounds=((np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), (0.0, MAX_ENTROPY_POWER)),
        method="L-BFGS-B",
    )
    temperature = float(np.clip(np.exp(found.x[0]), MIN_TEMPERATURE, MAX_TEMPERATURE))
    return _Fit(round(temperature, _DIGITS), round(float(found.x[1]), _DIGITS))


def _smoothed(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add rows labelled by the head's own probabilities, so that few rows hardly change the temperature.

    *Shape of all:* (rows, labels)
    """
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(logits, axis=-1) * _PRIOR_ROWS / len(logits) + targets
    return found


def _losses(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's cross entropy. *Shape of both:* (rows, labels)."""
    from scipy.special import log_softmax

    found: NDArray[np.float64] = -(targets * log_softmax(logits, axis=-1)).sum(axis=-1)
    return found


def _loss(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the mean cross entropy. *Shape of both:* (rows, labels)."""
    return float(_losses(logits, targets).mean())


def _error_by_chance(probabilities: NDArray[np.float64]) -> float:
    """Return the mean calibration error of answers that are as often right as said. *Shape:* (rows, labels)."""
    draw, confidence = np.random.default_rng(0), probabilities.max(axis=-1)
    right = draw.random((_CHANCE_DRAWS, len(confidence))) < confidence
    return float(np.mean([_binned_error(confidence, one.astype(np.float64)) for one in right]))


def calibration_error(probabilities: NDArray[np.float64], targets: NDArray[Any]) -> float:
    """Return the expected calibration error: the distance between the best label's probability and its accuracy.

    Rows are put into 15 bins by the probability of their best label; each bin weighs as much as it has rows.

    Args:
        probabilities: *Shape:* (rows, labels)
        targets: Label indices. *Shape:* (rows,); or the probabilities of labels, in which case an answer is right by
            its share. *Shape:* (rows, labels)
    """
    answers, expected = probabilities.argmax(axis=-1), _as_probabilities(targets, probabilities.shape[-1])
    return _binned_error(probabilities.max(axis=-1), expected[np.arange(len(answers)), answers])


def _binned_error(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> float:
    """Return the error of confidences whose answers are right by these shares. *Shape of both:* (rows,)."""
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = [abs(confidence[bins == one].sum() - correct[bins == one].sum()) for one in np.unique(bins)]
    return float(sum(gaps) / len(confidence))


CLASSIFICATION = Kind(
    name="classification",
    codec=ClassificationCodec(),
    training=ClassificationTraining(),
    output=ClassificationOutput(),
    answers=ClassificationAnswers(),
    metrics=("accuracy", "f1", "macro_f1", "matthews", "f1_accuracy"),
    options=ClassificationOptions,
)
