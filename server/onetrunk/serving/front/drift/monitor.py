"""Keeps the windows of all tasks, in one process of the front or in several."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from tritonclient.grpc import service_pb2

from onetrunk.client.answer import Answer, Prediction
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.names import CHECK_ID
from onetrunk.serving.front.drift.comparison import Drift, compare
from onetrunk.serving.front.drift.counts import Counts, count_predictions, count_scores
from onetrunk.serving.front.drift.window import PART, Window
from onetrunk.serving.front.questions import Question

log = logging.getLogger("onetrunk.serving.front")

# What waits to be counted. What comes beyond is left out: a window holds no more anyway.
MOST_WAITING, MOST_WAITING_BYTES = 2000, 8 << 20
# A worker tells the others what it has counted at least so often.
TELL_S = 60.0
# Metrics that somebody asks for again within so many seconds are not made again.
TEXT_AGE_S = 1.0

Tasks = Mapping[str, TaskInfo]


class DriftMonitor:
    """Compares the last answers of each task with its reference.

    Answers are only noted while requests wait for them; they are counted together a moment later.
    """

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """Start with empty windows.

        Args:
            folder: Where several workers of one front tell each other their counts; None if there is one.
            clock: The seconds since some time, the same for all workers.
        """
        self._folder, self._clock = folder, clock
        self._windows: dict[str, tuple[TaskInfo, Window]] = {}
        self._answers: list[Answer] = []
        self._responses: list[tuple[bytes, bytes | None]] = []
        self._response_bytes = 0
        self._told_at = 0.0
        self._fault: str | None = None
        self._text: tuple[float, Tasks, bytes] | None = None

    def note(self, answers: Sequence[Answer]) -> None:
        """Note answers that the front has read."""
        self._answers.extend(answers[: MOST_WAITING - len(self._answers)])

    def note_response(self, response: bytes, question: Question) -> None:
        """Note a serialized ``ModelInferResponse`` that is passed on, of a request to an ensemble.

        Where texts are sent, a task answers for the rows of its form only: if a request names no outputs, Triton also
        answers a task of pairs about single texts, and that says nothing. Token ids do not tell their form, so of them
        the tasks count that the request names.
        """
        if question.pairs is None and not question.outputs:
            return
        if self._response_bytes + len(response) <= MOST_WAITING_BYTES and len(self._responses) < MOST_WAITING:
            self._responses.append((response, question.pairs))
            self._response_bytes += len(response)

    def count(self, tasks: Tasks) -> None:
        """Count what was noted.

        Args:
            tasks: The tasks as they are served now. A task of another version begins a new window. While none are
                known, what was noted is kept until they are.
        """
        if not tasks:
            return
        for name, (task, _) in list(self._windows.items()):
            if tasks.get(name) != task:
                del self._windows[name]
        answers, responses = self._answers, self._responses
        self._answers, self._responses, self._response_bytes = [], [], 0
        said: dict[str, list[Prediction]] = {}
        for answer in answers:
            for name, prediction in answer.predictions.items():
                said.setdefault(name, []).append(prediction)
        for name, predictions in said.items():
            self._add(tasks.get(name), predictions, count_predictions)
        # Together, since numpy takes as long for one text as for a hundred.
        given: dict[tuple[str, tuple[int, ...]], list[NDArray[np.float32]]] = {}
        for response, pairs in responses:
            for name, scores in _scores(response):
                asked = tasks.get(name)
                if asked is not None and len(fitting := _of_form(asked, scores, pairs)):
                    given.setdefault((name, scores.shape[1:]), []).append(fitting)
        for (name, _), parts in given.items():
            self._add(tasks.get(name), np.concatenate(parts), count_scores)
        if self._folder is not None and (answers or responses or self._clock() - self._told_at > TELL_S):
            self._tell(self._folder)

    def drifts(self, tasks: Tasks) -> dict[str, Drift]:
        """Return the drift of every task with a reference, over all workers.

        Args:
            tasks: The tasks as they are served now.
        """
        self.count(tasks)
        others = list(self._told()) if self._folder is not None else []
        found: dict[str, Drift] = {}
        for name, task in tasks.items():
            counts = Counts()
            if name in self._windows:
                counts.add(self._windows[name][1].counts(self._clock()))
            for other in others:
                if other.get(name, {}).get("version") == task.version:
                    counts.add(Counts.of_record(other[name]["counts"]))
            if (drift := compare(task, counts)) is not None:
                found[name] = drift
        return found

    def text(self, tasks: Tasks) -> bytes:
        """Return the metrics of all tasks in Prometheus's text format, over all workers, as of the last second.

        Args:
            tasks: The tasks as they are served now.
        """
        now = self._clock()
        if self._text is None or self._text[1] != tasks or not 0 <= now - self._text[0] < TEXT_AGE_S:
            self._text = now, dict(tasks), self._text_of(tasks)
        return self._text[2]

    def _text_of(self, tasks: Tasks) -> bytes:
        registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"onetrunk_{name}", text, ("task", *labels), registry=registry)

        window = gauge("drift_window_answers", "Answers in the window that is compared with the dev data")
        psi = gauge("drift_psi", "Population stability index of the window against the dev data", "of")
        means = [
            (field, gauge(name, f"{text} in the window"), gauge(f"{name}_reference", f"{text} on the dev data"))
            for field, name, text in (
                ("none_of_these", "none_of_these_share", "Share of answers with no label"),
                ("entropy", "answer_entropy", "Mean entropy of answers, from 0 to 1"),
                ("spans", "answer_spans", "Mean number of spans"),
            )
        ]
        for name, drift in self.drifts(tasks).items():
            window.labels(name).set(drift.answers)
            for of, value in drift.psi.items():
                psi.labels(name, of).set(value)
            for field, now, then in means:
                if (expected := getattr(tasks[name].reference, field)) is not None:
                    then.labels(name).set(expected)
                if (found := getattr(drift, field)) is not None:
                    now.labels(name).set(found)
        return generate_latest(registry)

    def _add(self, task: TaskInfo | None, seen: Any, count: Callable[[TaskInfo, Any], Counts | None]) -> None:
        if task is None or task.reference is None:
            return
        _, window = self._windows.setdefault(task.name, (task, Window()))
        for start in range(0, len(seen), PART):
            try:
                counts = count(task, seen[start : start + PART])
            except (KeyError, ValueError):  # labels of a version that is served no more
                continue
            if counts is not None:
                window.add(counts, self._clock())

    def _tell(self, folder: Path) -> None:
        now = self._told_at = self._clock()
        told = {
            name: {"version": task.version, "counts": window.counts(now).record()}
            for name, (task, window) in self._windows.items()
        }
        path = folder / f"drift-{os.getpid()}.json"
        fault = None
        try:
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(told), encoding="utf-8")
            os.replace(aside, path)
        except OSError as error:
            fault = error.strerror or str(error)
        if fault is not None and fault != self._fault:  # not twice a second while a disk is full
            log.warning("%s: other workers are not told what was counted: %s", path, fault)
        elif fault is None and self._fault is not None:
            log.warning("%s: other workers are told again what was counted", path)
        self._fault = fault

    def _told(self) -> Iterator[dict[str, Any]]:
        assert self._folder is not None
        for path in self._folder.glob("drift-*.json"):
            pid = path.stem.removeprefix("drift-")
            # What a process that has died told would never age.
            if pid != str(os.getpid()) and Path(f"/proc/{pid}").exists():
                try:
                    yield json.loads(path.read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    continue


def _of_form(task: TaskInfo, scores: NDArray[np.float32], pairs: bytes | None) -> NDArray[np.float32]:
    """Return the scores of the rows whose form is the task's. *Shape:* (rows, *dims), also of what is returned.

    Args:
        task: The task.
        scores: The scores of all rows.
        pairs: Row -> whether it is a pair; None if the task was asked about rows of its form.
    """
    if pairs is None:
        return scores
    fits = np.frombuffer(pairs, np.bool_) == (task.form == "pair")
    return scores[fits] if len(fits) == len(scores) else scores[:0]


def _scores(response: bytes) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the outputs of a ``ModelInferResponse`` that are numbers. *Shape of each:* (rows, *dims)."""
    try:
        message = service_pb2.ModelInferResponse.FromString(response)
    except DecodeError:
        return
    # What is asked to see whether models answer is no traffic; and of outputs in shared memory nothing is here.
    if message.id == CHECK_ID or len(message.outputs) != len(message.raw_output_contents):
        return
    for output, content in zip(message.outputs, message.raw_output_contents, strict=True):
        shape = tuple(output.shape)
        if output.datatype == "FP32" and shape and 4 * math.prod(shape) == len(content):
            yield output.name, np.frombuffer(content, np.float32).reshape(shape)
