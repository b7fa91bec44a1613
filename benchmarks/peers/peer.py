"""A peer: a server that a user would run instead of Triton, how it is started, asked and read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers.tasks import REGRESSIONS

FOLDER = Path(__file__).resolve().parent
# Below the checkpoints, once all of them are exported and optimized: whatever ends that early leaves half a file.
PREPARED = ".onnx/.complete"
LABEL = "label_"  # and the number of the output: so do checkpoints.py's configs name labels


@dataclass(frozen=True)
class HttpRequest:
    """A POST of JSON."""

    path: str
    body: bytes


@dataclass(frozen=True)
class Peer:
    """A server of single-task classifiers.

    Attributes:
        name: what tables call it.
        script: the file beside this one that starts it.
        protocol: ``one``: a request asks for all tasks; ``infinity``: a request asks for one.
        options: of the script, beside models, port and threads.
        exported: whether it serves ONNX files that have to be made first. Infinity then also leaves the token types
            out, which are taken for 0, where it reranks.
    """

    name: str
    script: str
    protocol: Literal["one", "infinity"] = "one"
    options: tuple[str, ...] = ()
    exported: bool = False

    def command(self, python: Path, models: Path, port: int, threads: int) -> list[str]:
        """What starts the server; ``python`` is that of the peers' virtual environment."""
        given = ["--models", str(models), "--port", str(port), "--threads", str(threads)]
        return [str(python), str(FOLDER / self.script), *given, *self.options]

    def preparation(self, python: Path, models: Path, threads: int) -> list[list[str]]:
        """What has to run once for these models, before the first start."""
        if not self.exported or _optimized(models):
            return []
        # Infinity optimizes a model when it first loads it. Apart from the server, whose memory that would count as.
        optimize = [*self.command(python, models, 0, threads), "--preload-only"]
        return [[str(python), str(FOLDER / "export_onnx.py"), "--models", str(models)], optimize]

    def environment(self, threads: int) -> dict[str, str]:
        """Variables to add: one number of threads for all that reads one, and nothing that calls home."""
        return {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # Threads that wait for each other give the core away. Spinning, the default, was three times slower where
            # other programs, as a client is one, took some of the cores.
            "OMP_WAIT_POLICY": "PASSIVE",
            # Several tokenizers in several threads would each take all cores.
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def requests(
        self, text: str, pair: str | None, tasks: Sequence[str], regressions: Collection[str] = REGRESSIONS
    ) -> list[HttpRequest]:
        """What a client sends to learn all these tasks' scores of one row.

        Infinity has no second text for a classifier: the pair goes into the first one behind a [SEP], which gives the
        same tokens, all of type 0. A regression it takes for a reranker, which always has a second text: without a
        pair that is empty, one [SEP] more than elsewhere.

        Args:
            text: the row's text.
            pair: its second text, if it has one.
            tasks: their names.
            regressions: which of all tasks are regressions; only Infinity has to be told.
        """
        if self.protocol == "one":
            return [HttpRequest("/predict", _json({"text": text, "text_pair": pair, "tasks": list(tasks)}))]
        joined = text if pair is None else f"{text} [SEP] {pair}"
        reranked = {"query": text, "documents": [pair or ""], "raw_scores": True}
        return [
            HttpRequest("/rerank", _json({"model": task, **reranked}))
            if task in regressions
            else HttpRequest("/classify", _json({"model": task, "input": [joined]}))
            for task in tasks
        ]

    def check(self, bodies: Sequence[bytes]) -> dict[str, list[float]]:
        """Reads the answers to ``requests``.

        Returns:
            Task -> its scores in the order of its outputs.

        Raises:
            ValueError: a body is no answer.
        """
        answers: dict[str, list[float]] = {}
        for body in bodies:
            try:
                answer = json.loads(body)
                answers |= _one(answer) if self.protocol == "one" else _infinity(answer)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.name} answered {body[:200]!r}: {type(error).__name__}: {error}") from error
        return answers


def _optimized(models: Path) -> bool:
    tasks = [config.parent.name for config in models.glob("[!.]*/config.json")]
    files = [models / ".onnx" / task / "model_optimized.onnx" for task in tasks]
    return all(file.is_file() for file in [*files, models / PREPARED])


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _one(answer: Any) -> dict[str, list[float]]:
    return {task: _in_order(scores) for task, scores in answer.items()}


def _infinity(answer: Any) -> dict[str, list[float]]:
    if answer["object"] == "rerank":
        return {answer["model"]: [float(answer["results"][0]["relevance_score"])]}
    return {answer["model"]: _in_order(answer["data"][0])}


def _in_order(scores: list[dict[str, Any]]) -> list[float]:
    # Pipelines answer with the best label first.
    by_output = {int(entry["label"].removeprefix(LABEL)): float(entry["score"]) for entry in scores}
    return [by_output[place] for place in range(len(scores))]
