"""What is in the embedding already: a linear model on the mean of the deepest states, beside fine-tuning and heads.

Where full fine-tuning does not beat it, the share of its score that a head keeps says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onetrunk.distill.markdown import NOT_YET, gain, percent, points, table
from onetrunk.distill.results import SearchResults
from onetrunk.files import atomic_write_text
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.reading import read_json
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure
from onetrunk.tasks.records import Split
from onetrunk.training.compute import describe_machine
from onetrunk.training.experiment import Experiment

FILE = "linear.json"
_BATCH = 256
# Strengths of regularisation, of which cross-validation on the train data chooses.
_STRENGTHS = np.logspace(-4, 1, 6)


def linear_score(task: str, experiment: Experiment, progress: ProgressCallback = silent) -> float:
    """Return the dev score of logistic regression, or for numbers ridge regression, on the mean of the deepest states.

    Pairs are read as the trunk reads them: both texts in one sequence.

    Args:
        task: A task of kind ``classification`` or ``regression``.
        experiment: Trunk, data and cache.
        progress: Called as the trunk reads the texts.
    """
    chosen = experiment.task(task)
    kind = get_kind(chosen.kind)
    train, dev = (_embeddings(task, split, experiment, progress) for split in ("train", "dev"))
    targets = experiment.targets(task, "train").numpy()
    if chosen.kind == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=1 / _STRENGTHS)).fit(train, targets)
        scores = model.predict(dev)[:, None].astype(np.float32)
    else:
        search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": _STRENGTHS}, cv=5)
        model = make_pipeline(StandardScaler(), search).fit(train, targets)
        scores = model.predict_proba(dev).astype(np.float32)
    predictions = kind.answers.predictions(scores, chosen)
    return measure(chosen.metrics, predictions, experiment.targets(task, "dev").numpy())[0][chosen.metric]


def _embeddings(task: str, split: Split, experiment: Experiment, progress: ProgressCallback) -> NDArray[np.float32]:
    depth = experiment.trunk.depth
    states = experiment.states(task, split, [depth], progress).states[depth]
    found = np.empty((len(states.lengths), experiment.trunk.width), dtype=np.float32)
    order = np.argsort(states.lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        state, mask = states.batch(rows)
        with torch.no_grad():
            found[rows] = (state.sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy()
    return found


def measure_linear(folder: Path, tasks: Mapping[str, float]) -> None:
    """Write scores into a study's folder, beside those that are there.

    Args:
        folder: The study's folder.
        tasks: Task -> dev score.
    """
    found = {**read_linear(folder), **{task: round(score, 6) for task, score in tasks.items()}}
    values = {"scores": dict(sorted(found.items())), "machine": describe_machine()}
    atomic_write_text(folder / FILE, json.dumps(values, indent=1) + "\n")


def read_linear(folder: Path) -> dict[str, float]:
    """Return each task's dev score, as far as they were measured."""
    try:
        return dict(read_json(folder / FILE, max_bytes=2**20)["scores"])
    except FileNotFoundError:
        return {}


def linear_table(results: SearchResults, scores: Mapping[str, float]) -> list[str]:
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
            points(scores[one.task]),
            points(one.full.mean),
            points(one.student.mean),
            gain(one.student.mean - scores[one.task]),
        )
        for one in results.tasks
        if one.task in scores and one.full is not None and one.student is not None
    ]
    values = linear_summary(results, scores)
    beaten = values["retention_average_where_tuning_helps"]
    without = ", ".join(values["tuning_does_not_help"]) or "none"
    return [
        *table(("task", "metric", "linear model", "full fine-tuning", "head", "head's gain"), rows),
        "",
        "The linear model is logistic regression (ridge regression for numbers) on the mean of the trunk's deepest "
        "states, its strength chosen by cross-validation on the train data; dev scores in hundredths.",
        "",
        f"Kept on average where full fine-tuning beats the linear model: {percent(beaten)} (without: {without}).",
    ]


def linear_summary(results: SearchResults, scores: Mapping[str, float]) -> dict[str, Any]:
    """Return what summary.json holds of it.

    Args:
        results: The study's results.
        scores: See ``read_linear``.
    """
    known = [one for one in results.tasks if one.task in scores and one.full is not None]
    helped = [one for one in known if one.full is not None and one.full.mean > scores[one.task]]
    kept = [one.retention for one in helped if one.retention is not None]
    return {
        "linear": {task: round(score, 6) for task, score in sorted(scores.items())},
        "tuning_does_not_help": sorted({one.task for one in known} - {one.task for one in helped}),
        "retention_average_where_tuning_helps": round(fmean(kept), 6) if kept else None,
    }
