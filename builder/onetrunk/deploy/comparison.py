"""Comparing a candidate with the live head on a user's own texts: agreement, metric, latency."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from onetrunk.admin import AdminClient, Row
from onetrunk.deploy.fleet import first_of
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import candidate_ensemble, candidate_output
from onetrunk.protocol.words import is_readable
from onetrunk.repository.state import RepositoryState
from onetrunk.tasks.examples import targets_of
from onetrunk.tasks.formats import read_records
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import stack_scores
from onetrunk.tasks.metrics import metric_of
from onetrunk.tasks.records import BrokenLine

_BATCH = 16
_TEXT, _PAIR = ("text", "sentence", "sentence1", "tokens", "words"), ("text_pair", "pair", "sentence2")
_LABEL = ("label", "score", "tags", "labels")
# So many columns are named.
_SHOWN = 8


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the live head. ``live`` values are None if the task is not served yet.

    Attributes:
        task: The task.
        live_version: The version that is served.
        candidate_version: The candidate's version.
        rows: The number of texts.
        labelled: The number of texts with a label.
        agreement: How far both agree, as ``agreement_is`` says; None if that is undefined.
        agreement_is: ``share`` of texts with the same answer, or ``correlation`` of the numbers.
        mean_difference: The mean distance of the scores.
        metric: The metric's name.
        live_score: The live head's score on the labelled texts; None if there are none.
        candidate_score: The candidate's score.
        live_p50_ms: The median time of a request for one text.
        candidate_p50_ms: The candidate's.
        live_p99_ms: The 99th percentile of that time.
        candidate_p99_ms: The candidate's.
        disagreements: The texts on which they differ most, with both answers.
        notes: Remarks on the file.
    """

    task: str
    live_version: int | None
    candidate_version: int
    rows: int
    labelled: int
    agreement: float | None
    agreement_is: str
    mean_difference: float | None
    metric: str
    live_score: float | None
    candidate_score: float | None
    live_p50_ms: float | None
    candidate_p50_ms: float
    live_p99_ms: float | None
    candidate_p99_ms: float
    disagreements: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Texts:
    rows: list[Row]
    labels: list[object]
    notes: tuple[str, ...] = ()


def compare(
    state: RepositoryState,
    server: AdminClient,
    task: str,
    file: Path,
    tokenizer: Path,
    progress: ProgressCallback = silent,
    most_timed: int = 200,
) -> Comparison:
    """Ask the live head and the candidate about the same texts. The live ensembles are not touched.

    Args:
        state: The repository's state.
        server: The server on the repository.
        task: A task that has a candidate.
        file: Texts, as JSON lines, CSV or TSV: ``text``, ``text_pair`` for pairs, and ``label`` if it is known; or in
            the columns on which the candidate was trained.
        tokenizer: The ``tokenizer.json`` that is served, by which labels of words are put on tokens.
        progress: Called as texts are asked about.
        most_timed: The number of texts on which latency is measured, one request at a time, both heads in turn.

    Raises:
        UserError: The file has no texts, or a label that the task does not have.
        OneTrunkError: The server does not answer.
    """
    head = state.heads[task]
    if head.candidate is None:
        raise UserError(f"task {task} has no candidate")
    spec, ensemble = head.spec(head.candidate), candidate_ensemble(task)
    live = spec if head.served is None else head.spec(head.served)
    texts = _read(file, spec)
    outputs = [candidate_output(task)] if head.served is None else [task, candidate_output(task)]
    answers: dict[str, list[NDArray[np.float32]]] = {output: [] for output in outputs}  # a row each
    for start in range(0, len(texts.rows), _BATCH):
        progress("asking both", start, len(texts.rows))
        found = server.ask(ensemble, texts.rows[start : start + _BATCH], outputs)
        for output in outputs:
            answers[output] += list(found[output])
    scores = {output: stack_scores(rows) for output, rows in answers.items()}
    times = _latencies(server, ensemble, texts.rows[:most_timed], outputs, progress)
    new, old = scores[candidate_output(task)], scores.get(task)
    kind, (targets, known) = get_kind(spec.kind), _targets(file, texts, spec, tokenizer, state.max_length)
    return Comparison(
        task=task,
        live_version=head.served,
        candidate_version=head.candidate,
        rows=len(texts.rows),
        labelled=len(known),
        agreement=None if old is None else kind.answers.agreement(old, new, live, spec),
        agreement_is=kind.answers.agreement_measure,
        mean_difference=None if old is None else kind.answers.mean_difference(old, new, spec),
        metric=spec.metric,
        live_score=None if old is None or not known else metric_of(old[known], targets, live),
        candidate_score=metric_of(new[known], targets, spec) if known else None,
        live_p50_ms=_percentile(times.get(task), 50),
        candidate_p50_ms=_percentile(times[candidate_output(task)], 50) or 0.0,
        live_p99_ms=_percentile(times.get(task), 99),
        candidate_p99_ms=_percentile(times[candidate_output(task)], 99) or 0.0,
        disagreements=() if old is None else _disagreements(texts.rows, old, new, live, spec),
        notes=texts.notes,
    )


def _read(file: Path, spec: HeadSpec) -> _Texts:
    """Read the texts of a file, and their labels as they are."""
    rows: list[Row] = []
    labels: list[object] = []
    columns: dict[str, None] = {}
    if file.name.removesuffix(".gz").endswith(".txt"):
        raise UserError(f'{file}: .txt is not read: give JSON lines with "text" in each, and "label" where it is known')
    kind = get_kind(spec.kind)
    names = {
        key: ((spec.data[key],) if key in spec.data else ()) + usual
        for key, usual in (("text_field", _TEXT), ("text_pair_field", _PAIR), ("label_field", _LABEL))
    }
    for record in read_records(file):
        if isinstance(record, BrokenLine):
            raise UserError(f"{file}, {record.place}: {record.why}")
        columns |= dict.fromkeys(record.values)
        text, pair = (_field(record.values, names[key]) for key in ("text_field", "text_pair_field"))
        try:
            text = kind.codec.read_text(text) if text is not None else ""
        except ValueError as error:
            raise UserError(f"{file}, {record.place}: the text {error}") from error
        if not is_readable(text):
            raise UserError(f"{file}, {record.place}: no text; {_advice(record.values, names['text_field'], 'texts')}")
        if spec.form == "pair" and not (isinstance(pair, str) and is_readable(pair)):
            advice = _advice(record.values, names["text_pair_field"], "second texts")
            raise UserError(f"{file}, {record.place}: no second text, and {spec.task} reads pairs; {advice}")
        rows.append((text, pair if spec.form == "pair" and isinstance(pair, str) else ""))
        labels.append(_field(record.values, names["label_field"]))
    if not rows:
        raise UserError(f"{file}: no texts in it")
    if columns.keys() & set(names["label_field"]):
        return _Texts(rows, labels)
    note = f"no label column (found {first_of(list(columns), _SHOWN)}), so no metric; name it {names['label_field'][0]}"
    return _Texts(rows, labels, (f"note: {note}",))


def _advice(values: dict[str, object], names: Sequence[str], of: str) -> str:
    """Return what to do about a row without a text."""
    if there := [name for name in names if name in values]:
        return f"its {there[0]} is empty: fill it, or leave the row out"
    found = first_of(list(values), _SHOWN) or "nothing"
    return f"found {found}: rename the column of the {of} to {names[0]}"


def _field(values: dict[str, object], names: Sequence[str]) -> object:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _targets(
    file: Path, texts: _Texts, spec: HeadSpec, tokenizer: Path, max_length: int
) -> tuple[NDArray[Any], list[int]]:
    """Return the targets of the rows that have a label, and the numbers of these rows.

    Texts are truncated at the served ``max_length``, not at that of the head's training: the answers are about what the
    server reads.
    """
    kind, known, encoded = get_kind(spec.kind), [], []
    for row, label in enumerate(texts.labels):
        if label is None:
            continue
        try:
            encoded.append(kind.codec.encode(label, spec, texts.rows[row][0]))
        except ValueError as error:
            raise UserError(f"{file}, text {row + 1}: {error}") from error
        known.append(row)
    rows = [texts.rows[row][0] for row in known]
    reader = partial(Tokenizer.from_file, str(tokenizer))
    return targets_of(kind, encoded, spec, rows, reader, max_length), known


def _disagreements(
    rows: Sequence[Row],
    old: NDArray[np.float32],
    new: NDArray[np.float32],
    live: HeadSpec,
    spec: HeadSpec,
    most: int = 5,
) -> tuple[tuple[str, str, str], ...]:
    """Return the texts on which two heads differ most, with both answers.

    Args:
        rows: The texts.
        old: The live head's scores. *Shape:* (rows, dims of the head)
        new: The candidate's scores. *Shape:* (rows, dims of the head)
        live: The live head.
        spec: The candidate.
        most: The number of texts to return.
    """
    kind = get_kind(spec.kind)
    # A row without a distance is one that a head answers with NaN: no row differs more.
    distance = np.nan_to_num(kind.answers.distance(old, new, live, spec), nan=np.inf, posinf=np.inf)
    order = [int(row) for row in np.argsort(-distance, kind="stable")[:most] if distance[row] > 0]
    return tuple(
        (" | ".join(filter(None, rows[row])), kind.answers.format(old[row], live), kind.answers.format(new[row], spec))
        for row in order
    )


def _latencies(
    server: AdminClient, ensemble: str, rows: Sequence[Row], outputs: Sequence[str], progress: ProgressCallback
) -> dict[str, list[float]]:
    """Return output -> seconds of requests for one text. The outputs take turns, so that both meet the same machine."""
    times: dict[str, list[float]] = {output: [] for output in outputs}
    for done, row in enumerate(rows):
        progress("timing both", done, len(rows))
        for output in outputs if done % 2 else reversed(outputs):
            began = time.perf_counter()
            server.ask(ensemble, [row], [output])
            times[output].append(time.perf_counter() - began)
    return times


def _percentile(seconds: Sequence[float] | None, percent: int) -> float | None:
    return None if not seconds else round(1e3 * float(np.percentile(seconds, percent)), 2)
