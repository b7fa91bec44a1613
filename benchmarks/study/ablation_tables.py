"""The tables of what each part of distillation is worth."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from benchmarks.study.markdown import NOT_YET, gain, points, table
from benchmarks.study.recorded_study import RecordedStudy

BASIS = "basis"
_Scores = Mapping[str, Mapping[str, float]]


def ablation_tables(study: RecordedStudy) -> list[str]:
    """A table for each part that was changed, the unchanged student first in each."""
    scores = _scores(study)
    if not scores:
        return [f"The ablations: {NOT_YET}."]
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    lines = [
        "One thing is changed at a time, on each task's best teacher, one seed. `basis` is what the search does. "
        f"Scores in hundredths; the mean is over {', '.join(tasks)}.",
    ]
    for part, variants in _parts(scores).items():
        rows = [_row(BASIS, BASIS, scores, tasks)] if BASIS in scores else []
        rows += [_row(variant, variant.partition(":")[2].strip(), scores, tasks) for variant in variants]
        lines += ["", *table((part, "mean", "against basis", *tasks), rows)]
    return lines


def _scores(study: RecordedStudy) -> _Scores:
    """Variant -> task -> score, variants in the order in which they were tried."""
    found: dict[str, dict[str, float]] = {}
    for task, trials in study.studies["ablation"].items():
        for trial in trials.trials:
            found.setdefault(trial.what, {})[task] = trial.score
    return found


def _parts(scores: _Scores) -> dict[str, list[str]]:
    """What was changed -> its variants: ``start`` -> ``start: random``, ..."""
    parts: dict[str, list[str]] = {}
    for variant in scores:
        if variant != BASIS:
            parts.setdefault(variant.partition(":")[0], []).append(variant)
    return parts


def _row(variant: str, name: str, scores: _Scores, tasks: list[str]) -> tuple[str, ...]:
    found, basis = scores[variant], scores.get(BASIS, {})
    # A variant that a task has no use for is compared on the other tasks; its mean would be another than the basis's.
    mean = fmean(found.values()) if len(found) == len(tasks) else None
    gains = [found[task] - basis[task] for task in found if task in basis]
    difference = fmean(gains) if gains else None
    each = [points(found[task]) if task in found else "–" for task in tasks]
    return (name, "–" if mean is None else points(mean), "" if variant == BASIS else gain(difference), *each)
