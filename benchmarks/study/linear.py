"""What is in the embedding already: a linear model on the mean of the deepest states, beside fine-tuning and heads.

Where full fine-tuning does not beat it, the share of its score that a head keeps says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onetrunk.distill.markdown import NOT_YET, gain, percent, points, table
from onetrunk.distill.results import SearchResults, kept_on_average
from onetrunk.files import atomic_write_text
from onetrunk.nn.bundle import load_bundle
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON
from onetrunk.protocol.reading import read_json
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure
from onetrunk.tasks.records import Split
from onetrunk.training.compute import describe_machine
from onetrunk.training.evaluation import raw_outputs
from onetrunk.training.experiment import Experiment
from onetrunk.training.objective import output_of
from onetrunk.training.states import CachedStates

FILE = "linear.json"
_BATCH = 256
# Strengths of regularisation, of which cross-validation on the train data chooses.
_STRENGTHS = np.logspace(-3, 0, 4)
_RESAMPLES, _SEED = 1000, 0


@dataclass(frozen=True)
class LinearComparison:
    """What a linear model on the embedding comes to, and a finished head beside it, on the same dev rows.

    Attributes:
        linear: The linear model's dev score.
        head: The finished head's; None where there is none.
        low: The lower end of the 95% interval of the head's gain, by a paired bootstrap over the dev rows.
        high: Its upper end.
    """

    linear: float
    head: float | None = None
    low: float | None = None
    high: float | None = None


def compare_linear(
    task: str, experiment: Experiment, heads: Path | None = None, progress: ProgressCallback = silent
) -> LinearComparison:
    """Score a linear model on the mean of the deepest states, and the finished head of the task beside it.

    The linear model is logistic regression, or for numbers ridge regression. Of a pair it sees both embeddings, their
    difference and their product, as in Conneau and Kiela 2018, "SentEval" (arXiv:1803.05449).

    Args:
        task: A task of kind ``classification`` or ``regression``.
        experiment: Trunk, data and cache.
        heads: The folder of finished heads; None compares with none.
        progress: Called as the trunk reads the texts.
    """
    chosen = experiment.task(task)
    kind = get_kind(chosen.kind)
    targets = kind.codec.hard(experiment.targets(task, "dev").numpy())
    predictions = {}
    # First: of a head that does not fit, nothing is computed.
    if heads is not None and (heads / task / HEAD_JSON).exists():
        predictions["head"] = _head_predictions(heads / task, experiment, progress)
    predictions["linear"] = kind.answers.predictions(_linear_scores(task, experiment, progress), chosen)

    def score(who: str, rows: NDArray[np.int64]) -> float:
        return measure(chosen.metrics[:1], predictions[who][rows], targets[rows])[0][chosen.metric]

    everything = np.arange(len(targets))
    linear = score("linear", everything)
    if "head" not in predictions:
        return LinearComparison(linear)
    draw = np.random.default_rng(_SEED)
    drawn = (draw.integers(len(targets), size=len(targets)) for _ in range(_RESAMPLES))
    # Both are scored on the same rows, so that what makes a row hard for both is no difference between them.
    low, high = np.percentile([score("head", rows) - score("linear", rows) for rows in drawn], [2.5, 97.5])
    return LinearComparison(linear, score("head", everything), float(low), float(high))


def _linear_scores(task: str, experiment: Experiment, progress: ProgressCallback) -> NDArray[np.float32]:
    chosen = experiment.task(task)
    train, dev = (_features(task, split, experiment, progress) for split in ("train", "dev"))
    targets = experiment.targets(task, "train").numpy()
    if chosen.kind == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=1 / _STRENGTHS)).fit(train, targets)
        return np.asarray(model.predict(dev)[:, None], dtype=np.float32)

    def quality(model: Any, features: NDArray[np.float32], labels: NDArray[Any]) -> float:
        scores = np.asarray(model.predict_proba(features), dtype=np.float32)
        predictions = get_kind(chosen.kind).answers.predictions(scores, chosen)
        return measure(chosen.metrics[:1], predictions, labels)[0][chosen.metric]

    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": _STRENGTHS}, cv=3, scoring=quality)
    model = make_pipeline(StandardScaler(), search).fit(train, targets)
    return np.asarray(model.predict_proba(dev), dtype=np.float32)


def _features(task: str, split: Split, experiment: Experiment, progress: ProgressCallback) -> NDArray[np.float32]:
    """Return the embeddings of texts; of pairs u and v those of both, ``|u - v|`` and ``u * v``."""
    texts = experiment.examples(task, split).texts

    def embeddings(texts: Sequence[Any]) -> NDArray[np.float32]:
        # What is scored is computed in fp32, whatever the train texts are computed in.
        compute = experiment.compute.exact if split == "dev" else experiment.compute
        what = f"{task}: trunk on {split} texts"
        depth = experiment.trunk.depth
        found = experiment.text_states(texts, [depth], what=what, compute=compute, progress=progress)
        return _means(found.states[depth], experiment.trunk.width)

    if experiment.task(task).form == "single":
        return embeddings(texts)
    u, v = (embeddings([text[place] for text in texts]) for place in (0, 1))
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def _head_predictions(folder: Path, experiment: Experiment, progress: ProgressCallback) -> NDArray[Any]:
    bundle = load_bundle(folder, trunk=experiment.trunk)
    spec, branch = bundle.spec, experiment.branch(bundle.spec.limb)
    bundle.check_task(experiment.task(spec.task))
    if spec.max_length != (length := experiment.config.max_length):
        raise UserError(f"{folder}: it reads texts of up to {spec.max_length} tokens, not {length}: give --max-length")
    head, kind = bundle.head(experiment.trunk), get_kind(spec.kind)
    states = branch.states(spec.task, "dev", [spec.tap], progress).states[spec.tap]
    served = kind.output.scores(raw_outputs(head, states), spec, output_of(head))
    return kind.answers.predictions(served.numpy(), spec)


def _means(states: CachedStates, width: int) -> NDArray[np.float32]:
    """Return the mean state of each text. *Shape:* (texts, width)."""
    found = np.empty((len(states.lengths), width), dtype=np.float32)
    order = np.argsort(states.lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        state, mask = states.batch(rows)
        with torch.no_grad():
            found[rows] = (state.sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy()
    return found


def measure_linear(folder: Path, tasks: Mapping[str, LinearComparison]) -> None:
    """Write comparisons into a study's folder, beside those that are there.

    Args:
        folder: The study's folder.
        tasks: Task -> comparison.
    """
    found = {**read_linear(folder), **tasks}
    values = {"tasks": {task: asdict(one) for task, one in sorted(found.items())}, "machine": describe_machine()}
    atomic_write_text(folder / FILE, json.dumps(values, indent=1) + "\n")


def read_linear(folder: Path) -> dict[str, LinearComparison]:
    """Return each task's comparison, as far as they were measured."""
    try:
        found = read_json(folder / FILE, max_bytes=2**20).get("tasks")
    except FileNotFoundError:
        return {}
    if found is None:
        raise UserError(f"{folder / FILE}: written by an earlier version: remove it, and measure it anew")
    return {task: LinearComparison(**one) for task, one in found.items()}


def linear_table(results: SearchResults, scores: Mapping[str, LinearComparison]) -> list[str]:
    """Return the section of a page: the linear model's scores beside the others, and what is kept on the other tasks.

    The others are those on which full fine-tuning beats the linear model.

    Args:
        results: The study's results.
        scores: See ``read_linear``.
    """
    if not scores:
        return [f"A linear model on the embedding: {NOT_YET}."]
    rows = [
        (
            one.task,
            one.metric or "–",
            points(scores[one.task].linear),
            points(one.full.mean),
            points(one.student.mean),
            gain(one.student.mean - scores[one.task].linear),
            _interval(scores[one.task]),
        )
        for one in results.tasks
        if one.task in scores and one.full is not None and one.student is not None
    ]
    values = linear_summary(results, scores)
    beaten = values["retention_average_where_tuning_helps"]
    without = ", ".join(values["tuning_does_not_help"]) or "none"
    return [
        *table(
            ("task", "metric", "linear model", "full fine-tuning", "head", "head's gain", "finished head's gain"), rows
        ),
        "",
        "The linear model is logistic regression (ridge regression for numbers) on the mean of the trunk's deepest "
        "states; of a pair u, v it sees u, v, |u - v| and u * v. Cross-validation on the train data chose its "
        "regularisation by the task's metric; dev scores in hundredths. A head is a "
        "mean over seeds; the finished head is the one in heads/, and the 95% interval of its gain is a paired "
        "bootstrap over the dev rows.",
        "",
        f"Kept on average where full fine-tuning beats the linear model: {percent(beaten)} (without: {without}).",
    ]


def _interval(one: LinearComparison) -> str:
    if one.head is None or one.low is None or one.high is None:
        return "–"
    return f"{gain(one.head - one.linear)} ({gain(one.low)} to {gain(one.high)})"


def linear_summary(results: SearchResults, scores: Mapping[str, LinearComparison]) -> dict[str, Any]:
    """Return what summary.json holds of it.

    Args:
        results: The study's results.
        scores: See ``read_linear``.
    """
    known = [one for one in results.tasks if one.task in scores and one.full is not None]
    helped = [one for one in known if one.full is not None and one.full.mean > scores[one.task].linear]
    pairs = [(one.student.mean, one.full.mean) for one in helped if one.student is not None and one.full is not None]
    return {
        "linear": {task: round(one.linear, 6) for task, one in sorted(scores.items())},
        "head_beyond_linear": {
            task: [round(one.head - one.linear, 6), round(one.low, 6), round(one.high, 6)]
            for task, one in sorted(scores.items())
            if one.head is not None and one.low is not None and one.high is not None
        },
        "tuning_does_not_help": sorted({one.task for one in known} - {one.task for one in helped}),
        "retention_average_where_tuning_helps": round(kept_on_average(pairs), 6) if pairs else None,
    }
