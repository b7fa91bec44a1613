"""Candidates that answer a share of a task's traffic, until they are promoted or discarded, or a bound stops them.

A request of the share is sent to the live head as always, and to the candidate beside it. If the candidate answers in
time, its answer takes the place of the live head's; otherwise nobody notices. So both are compared on the same texts at
the same moment, and no candidate can make a request fail.

Which requests belong to the share follows from a key: the client's header, or its request id, or chance. The same key
gets the same version on every replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2

from onetrunk.client.answer import Answer, Prediction, TokenizedText
from onetrunk.client.catalogue import read_catalogue
from onetrunk.client.readers import reader_of
from onetrunk.client.wire import (
    bytes_tensor,
    request_message,
    response_arrays,
    task_scores,
    token_words,
    truncated_rows,
)
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import (
    MULTITASK,
    TEXT,
    TEXT_PAIR,
    TOKEN_WORDS,
    TRUNCATED,
    candidate_ensemble,
    candidate_output,
)
from onetrunk.protocol.traffic_split import TrafficSplit, TrialReport
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.gateway import SERVICE, Gateway
from onetrunk.serving.front.metrics import Metrics
from onetrunk.serving.front.observer import sticky_key
from onetrunk.serving.front.parts import current_parts
from onetrunk.serving.front.questions import Question
from onetrunk.serving.front.triton import TritonDownError

log = logging.getLogger("onetrunk.serving.front")

INFER = f"{SERVICE}ModelInfer"
LOAD = f"{SERVICE}RepositoryModelLoad"
# A bound is judged by the last requests of the share, once there are so many.
LEAST_REQUESTS, WINDOW = 50, 500
# How long a request waits for its candidate beyond the live answer: a multiple of that one's time, and at least this.
PATIENCE, LEAST_PATIENCE_S = 5.0, 0.25
# A restarted Triton does not hold the ensembles of candidates. It is asked to load one so often at most.
LOAD_EVERY_S = 30.0
# How often a process of a front looks whether another one has stopped a candidate: not for every request.
LOOK_EVERY_S = 1.0
# Numbers that differ by more than this share of their range are two answers.
NUMBER_TOLERANCE = 0.1


@dataclass(frozen=True)
class _Sample:
    """One request of the share: the seconds of both, and how many texts both answered differently, of how many."""

    failed: bool
    seconds: float
    live_seconds: float
    differ: int = 0
    texts: int = 0


@dataclass
class Trial:
    """One candidate, and what is known of it.

    Attributes:
        version: Its version.
        split: The share, and its bounds.
        samples: The last requests of the share.
        stopped: Why it was stopped; None if it was not.
        stop_file: Where the processes of one front tell each other that it was stopped; None for one process.
    """

    version: int
    split: TrafficSplit
    stop_file: Path | None = None
    samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=WINDOW))
    stopped: str | None = None
    load_tried: float = float("-inf")
    _looked: float = float("-inf")

    def look(self) -> None:
        """Learn whether another process of the front has stopped it. A look costs nothing but every `LOOK_EVERY_S`."""
        now = time.monotonic()
        if self.stopped is not None or self.stop_file is None or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        with suppress(OSError):  # most often there is no such file
            self.stopped = self.stop_file.read_text(encoding="utf-8")

    def stop(self, reason: str) -> None:
        """Stop it, in all processes of the front."""
        self.stopped = reason
        if self.stop_file is not None:
            aside = self.stop_file.with_name(f"{self.stop_file.name}.{os.getpid()}")
            with suppress(OSError):
                aside.write_text(reason, encoding="utf-8")
                os.replace(aside, self.stop_file)

    def report(self) -> TrialReport:
        """Return how it does."""
        answered = [sample for sample in self.samples if not sample.failed]
        texts = sum(sample.texts for sample in answered)
        live = statistics.median(sample.live_seconds for sample in answered) if answered else 0.0
        return TrialReport(
            version=self.version,
            share=self.split.share,
            requests=len(self.samples),
            errors=(len(self.samples) - len(answered)) / len(self.samples) if self.samples else 0.0,
            latency=statistics.median(sample.seconds for sample in answered) / live if live else None,
            disagreement=sum(sample.differ for sample in answered) / texts if texts else None,
            stopped=self.stopped,
        )

    def fault(self) -> str | None:
        """Return the bound that it has passed, if any."""
        if len(self.samples) < LEAST_REQUESTS:
            return None
        found, split = self.report(), self.split
        if found.errors > split.errors:
            return f"it failed to answer {found.errors:.1%} of {found.requests} requests; allowed: {split.errors:.1%}"
        if split.latency is not None and found.latency is not None and found.latency > split.latency:
            return f"its median time is {found.latency:.1f} times the live head's; allowed is {split.latency:g}"
        if split.disagreement is not None and (found.disagreement or 0.0) > split.disagreement:
            return f"it answers {found.disagreement:.1%} of the texts differently; allowed are {split.disagreement:.1%}"
        return None


@dataclass(frozen=True)
class Tried:
    """A question to a candidate that is under way.

    Attributes:
        task: The task, as the live head answers it.
        trial: The candidate.
        rows: The rows of the request that it is about.
        began: The reading of the clock at its start.
        answer: The answer to come, with its seconds.
    """

    task: TaskInfo
    trial: Trial
    rows: Sequence[int]
    began: float
    answer: asyncio.Task[tuple[Any, float]]


class Trials:
    """The candidates that answer a share of the traffic of this front."""

    def __init__(self, gateway: Gateway, metrics: Metrics, folder: Path | None = None) -> None:
        """Know no candidate yet.

        Args:
            gateway: The way to Triton, which knows the tasks.
            metrics: Where the requests of the share are counted.
            folder: Where the processes of one front tell each other that a candidate was stopped; None for one process.
        """
        self._gateway, self._metrics, self._folder = gateway, metrics, folder
        self._known: dict[str, Trial] = {}

    def reports(self) -> dict[str, TrialReport]:
        """Return task -> how its candidate does."""
        found = {task.name: self._trial(task) for task in self._gateway.last_tasks.values()}
        return {name: trial.report() for name, trial in found.items() if trial is not None}

    def chosen(self, tasks: Iterable[str], key: str = "") -> list[tuple[TaskInfo, Trial]]:
        """Return the tasks of a request that their candidates are to answer.

        Args:
            tasks: The tasks that it asks.
            key: What makes requests belong together, if the client's headers have nothing.
        """
        found = []
        for name in tasks:
            task = self._gateway.last_tasks.get(name)
            trial = self._trial(task) if task is not None else None
            if task is None or trial is None or trial.stopped is not None:
                continue
            if _draw(name, sticky_key() or key) < trial.split.share:
                found.append((task, trial))
        return found

    def ask_texts(
        self, chosen: Sequence[tuple[TaskInfo, Trial]], texts: Sequence[str], pairs: Sequence[str | None]
    ) -> list[Tried]:
        """Begin to ask candidates about texts."""
        tried = []
        for task, trial in chosen:
            rows = [row for row, pair in enumerate(pairs) if (pair is not None) == (task.form == "pair")]
            if rows:
                sent = [(texts[row], pairs[row]) for row in rows]
                tried.append(self._begin(task, trial, rows, self._texts_answered(task, sent)))
        return tried

    async def answers(self, live: list[Answer], tried: Sequence[Tried]) -> list[Answer]:
        """Return the answers to a request, those of candidates in place of the live heads'."""
        found, ended = list(live), time.perf_counter()
        for one in tried:
            answered = await self._ended(one, ended)
            if answered is None:
                continue
            predictions, seconds = answered
            differ = compared = 0
            for row, prediction in zip(one.rows, predictions, strict=True):
                before = found[row].predictions.get(one.task.name)
                # Of a text that the live head has read in windows, the candidate has read the beginning only.
                if before is not None and before.windows == 1:
                    compared += 1
                    differ += differs(one.task, before, prediction)
                    merged = {**found[row].predictions, one.task.name: prediction}
                    found[row] = replace(found[row], predictions=merged)
            self._note(one, _Sample(False, seconds, ended - one.began, differ, compared))
        return found

    def ask_message(self, question: Question, request: bytes) -> list[Tried]:
        """Begin to ask candidates what a ``ModelInferRequest`` asks."""
        if question.model != MULTITASK or not any(task.candidate for task in self._gateway.last_tasks.values()):
            return []
        message = service_pb2.ModelInferRequest.FromString(request)
        chosen = self.chosen(self._gateway.known_tasks(question), message.id)
        rows = range(question.rows)
        return [
            self._begin(task, trial, rows, self._sent(_as_candidates(message, task.name), len(request)))
            for task, trial in chosen
        ]

    async def message(self, live: bytes, tried: Sequence[Tried]) -> bytes:
        """Return a ``ModelInferResponse`` with the outputs of candidates in place of the live heads'.

        Who receives it reads it as the live heads' answers are read. A candidate whose answers are read otherwise, by
        other thresholds, is compared all the same, and the live head answers.
        """
        if not tried:
            return live
        response, ended = service_pb2.ModelInferResponse.FromString(live), time.perf_counter()
        for one in tried:
            answered = await self._ended(one, ended)
            if answered is None:
                continue
            found, seconds = answered
            try:
                differ, compared = _compare_and_take_over(response, found, one.task)
            except (ValueError, OneTrunkError) as error:
                self._fail(one, ended - one.began, error)
            else:
                self._note(one, _Sample(False, seconds, ended - one.began, differ, compared))
        merged: bytes = response.SerializeToString()
        return merged

    def _trial(self, task: TaskInfo) -> Trial | None:
        """Return what is known of a task's candidate; begin anew if it is another one, or is to be judged otherwise."""
        if task.candidate is None:
            self._forget(task.name)
            return None
        trial = self._known.get(task.name)
        if trial is None or (trial.version, trial.split) != (task.candidate.version, task.candidate.split):
            candidate = task.candidate
            key = hashlib.sha256(f"{candidate.version} {candidate.split}".encode()).hexdigest()[:16]
            file = self._folder / f"stopped_{task.name}_{key}" if self._folder is not None else None
            trial = self._known[task.name] = Trial(candidate.version, candidate.split, file)
        trial.look()
        return trial

    def _forget(self, task: str) -> None:
        """Forget a candidate that is no more: if the same head is tried again, it has a new chance."""
        trial = self._known.pop(task, None)
        if trial is not None and trial.stop_file is not None:
            trial.stop_file.unlink(missing_ok=True)

    def _begin(self, task: TaskInfo, trial: Trial, rows: Sequence[int], work: Any) -> Tried:
        began = time.perf_counter()

        async def timed() -> tuple[Any, float]:
            with current_parts(None):
                found = await work
            return found, time.perf_counter() - began

        answer = asyncio.get_running_loop().create_task(timed())
        answer.add_done_callback(_mark_as_seen)
        return Tried(task, trial, rows, began, answer)

    async def _texts_answered(self, task: TaskInfo, sent: Sequence[tuple[str, str | None]]) -> list[Prediction]:
        """Ask a candidate about texts, in batches that Triton takes."""
        most = (await self._gateway.catalogue()).max_batch_size
        task = task.as_candidate
        reader, found = reader_of(task), []
        assert reader is not None, "tasks without a reader are never asked"
        if missing := reader.missing(task):
            raise ValueError(missing)
        asked = task.model_copy(update={"name": candidate_output(task.name)})
        outputs = [asked.name, *([TOKEN_WORDS, TRUNCATED] if reader.needs_words else [])]
        for start in range(0, len(sent), most):
            batch = sent[start : start + most]
            columns = [bytes_tensor(TEXT, [text.encode("utf-8", "replace") for text, _ in batch])]
            if task.form == "pair":
                columns.append(bytes_tensor(TEXT_PAIR, [(pair or "").encode("utf-8", "replace") for _, pair in batch]))
            message = request_message(candidate_ensemble(task.name), columns, outputs)
            arrays = response_arrays(await self._sent(message, message.ByteSize()))
            scores = task_scores(arrays, [asked], len(batch))[asked.name].tolist()
            words = token_words(arrays, len(batch)) if reader.needs_words else None
            truncated = truncated_rows(arrays, len(batch)) if reader.needs_words else []
            for row, (text, _) in enumerate(batch):
                tokenized = TokenizedText(text, truncated[row], words[row]) if words is not None else None
                found.append(reader.read(task, scores[row], tokenized))
        return found

    async def _sent(self, message: Any, size: int) -> Any:
        request = message.SerializeToString()
        answer = await self._gateway.infer(size, lambda: self._gateway.triton.call(INFER, request))
        return service_pb2.ModelInferResponse.FromString(answer)

    async def _ended(self, tried: Tried, live_ended: float) -> tuple[Any, float] | None:
        """Return a candidate's answer and its seconds; None if it is not to be used.

        Args:
            tried: The question to the candidate.
            live_ended: The reading of the clock when the live answer had come. How long that took is how long the
                candidate's is waited for, from then on, however many candidates a request waits for.
        """
        if tried.trial.stopped is not None:
            return None
        live_seconds = live_ended - tried.began
        patience = max(LEAST_PATIENCE_S, PATIENCE * live_seconds)
        left = max(0.0, live_ended + patience - time.perf_counter())
        done, _ = await asyncio.wait([tried.answer], timeout=left)
        if not done:
            self._note(tried, _Sample(True, patience, live_seconds))
            return None
        error = tried.answer.exception()
        if error is None:
            return tried.answer.result()
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.NOT_FOUND:
            await self._load(tried)
        elif not isinstance(error, RefusedError | TritonDownError):  # which say nothing about the candidate
            self._fail(tried, live_seconds, error)
        return None

    def _fail(self, tried: Tried, live_seconds: float, error: BaseException) -> None:
        log.error("the candidate of %s failed, and the live head answered: %s", tried.task.name, error)
        self._note(tried, _Sample(True, live_seconds, live_seconds))

    def _note(self, tried: Tried, sample: _Sample) -> None:
        """Count a request of the share, and stop the candidate if it passes a bound."""
        trial, name = tried.trial, tried.task.name
        self._metrics.tried(name, trial.version, sample.failed, sample.seconds, sample.live_seconds, sample.differ)
        trial.samples.append(sample)
        if trial.stopped is None and (fault := trial.fault()) is not None:
            trial.stop(fault)
            log.error("candidate version %d of %s is stopped: %s", trial.version, name, fault)

    async def _load(self, tried: Tried) -> None:
        """Load the ensemble of a candidate that Triton does not hold, as after a restart, if it is still on trial."""
        trial, now = tried.trial, time.monotonic()
        if now - trial.load_tried < LOAD_EVERY_S:
            return
        trial.load_tried = now
        try:
            request = service_pb2.ModelConfigRequest(name=MULTITASK).SerializeToString()
            answer = await self._gateway.call(f"{SERVICE}ModelConfig", request)
            config = service_pb2.ModelConfigResponse.FromString(answer).config
            served = read_catalogue(config).tasks.get(tried.task.name)
            if served is None or served.candidate is None or served.candidate.version != trial.version:
                return
            load = service_pb2.RepositoryModelLoadRequest(model_name=candidate_ensemble(tried.task.name))
            await self._gateway.call(LOAD, load.SerializeToString())
        except (grpc.aio.AioRpcError, TritonDownError, OneTrunkError) as error:
            log.error("the candidate of %s cannot be loaded: %s", tried.task.name, error)


def differs(task: TaskInfo, live: Prediction, candidate: Prediction) -> bool:
    """Return whether two answers to one text are different ones for who reads them.

    Args:
        task: The task.
        live: The live head's answer.
        candidate: The candidate's.
    """
    if task.range is not None:
        low, high = task.range
        return abs(live.score - candidate.score) > NUMBER_TOLERANCE * (high - low)
    for name in ("labels", "spans"):
        if hasattr(live, name):
            return {*map(_essence, getattr(live, name))} != {*map(_essence, getattr(candidate, name))}
    unsure = getattr(live, "none_of_these", False) != getattr(candidate, "none_of_these", False)
    return live.label != candidate.label or unsure


def _essence(part: Any) -> Any:
    """Return a label, or what a span is about: its scores differ in any case."""
    return part if isinstance(part, str) else (part.type, part.start, part.end)


def _draw(task: str, key: str) -> float:
    """Return a number from 0 to 1 that follows from a key; a random one without a key."""
    digest = hashlib.sha256(f"{task}\0{key}".encode()).digest() if key else os.urandom(8)
    return int.from_bytes(digest[:8], "big") / 2**64


def _as_candidates(message: Any, task: str) -> Any:
    """Return a request to a candidate with the inputs of one to the live heads."""
    found = service_pb2.ModelInferRequest()
    found.CopyFrom(message)
    found.model_name = candidate_ensemble(task)
    wanted = [output for output in message.outputs if output.name == task]
    del found.outputs[:]
    output = found.outputs.add(name=candidate_output(task))
    if wanted:
        for name, value in wanted[0].parameters.items():
            output.parameters[name].CopyFrom(value)
    return found


def _compare_and_take_over(response: Any, found: Any, task: TaskInfo) -> tuple[int, int]:
    """Put a candidate's output in place of the live head's, if it is read in the same way.

    Returns:
        The number of rows that both answer differently, and of how many that is known.

    Raises:
        ValueError: A response has no such output, or not in raw bytes.
        OneTrunkError: The candidate's scores cannot be read.
    """
    names = [output.name for output in response.outputs]
    at, other = names.index(task.name), [one.name for one in found.outputs].index(candidate_output(task.name))
    if len(names) != len(response.raw_output_contents) or len(found.outputs) != len(found.raw_output_contents):
        raise ValueError("it is not in raw bytes")
    differ_of = _rows_that_differ(response, at, found, other, task)
    if task.candidate_reads_alike:
        response.outputs[at].CopyFrom(found.outputs[other])
        response.outputs[at].name = task.name
        response.raw_output_contents[at] = found.raw_output_contents[other]
    return differ_of


def _rows_that_differ(response: Any, at: int, found: Any, other: int, task: TaskInfo) -> tuple[int, int]:
    reader, candidate = reader_of(task), task.as_candidate
    if response.outputs[at].datatype != "FP32" or reader is None or reader.needs_words:
        return 0, 0  # labels of the classification extension, or spans, which are not read here
    before, after = (
        np.frombuffer(one.raw_output_contents[place], "<f4").reshape(tuple(one.outputs[place].shape))
        for one, place in ((response, at), (found, other))
    )
    if not np.isfinite(after).all():
        raise ValueError("it has scores that are not finite numbers")
    if before.shape != after.shape:
        raise ValueError(f"it has shape {after.shape}, expected {before.shape}")
    if missing := reader.missing(candidate):
        raise ValueError(missing)
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    return sum(differs(task, reader.read(task, old), reader.read(candidate, new)) for old, new in pairs), len(before)


def _mark_as_seen(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a question for which nobody may be waiting any more."""
    if not task.cancelled():
        task.exception()
