"""Peer: plain FastAPI, one transformers pipeline a task.

    python serve_fastapi.py --models FOLDER --port N --threads T

POST /predict with {"text": ..., "text_pair": ..., "tasks": [...]} answers {task: [{"label": ..., "score": ...}, ...]}.
Stands alone: it imports only what requirements.txt installs.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from transformers import Pipeline, pipeline


class Question(BaseModel):
    """One text, with or without a second one, and what is asked about it."""

    text: str
    text_pair: str | None = None
    tasks: list[str]


def load_pipelines(models: Path) -> dict[str, Pipeline]:
    """Task -> its pipeline."""
    return {
        config.parent.name: pipeline("text-classification", model=str(config.parent), device="cpu")
        for config in sorted(models.glob("[!.]*/config.json"))
    }


def scores(pipe: Pipeline, row: dict[str, str | None]) -> list[dict[str, Any]]:
    """All scores of one row: probabilities, or the number itself of a regression."""
    function = "none" if pipe.model.config.num_labels == 1 else "softmax"
    with torch.inference_mode():
        return pipe(row, top_k=None, truncation=True, function_to_apply=function)


def create_app(models: Path, concurrency: int) -> FastAPI:
    """The server with its models loaded."""
    pipelines = load_pipelines(models)

    @asynccontextmanager
    async def limited(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = concurrency
        yield

    app = FastAPI(lifespan=limited)

    # Not async: FastAPI runs it in its thread pool, so that a model that computes does not stop the event loop.
    @app.post("/predict")
    def predict(question: Question) -> dict[str, list[dict[str, Any]]]:
        unknown = sorted(set(question.tasks) - set(pipelines))
        if unknown:
            raise HTTPException(422, f"no such tasks: {', '.join(unknown)}; known are: {', '.join(pipelines)}")
        row = {"text": question.text, "text_pair": question.text_pair}
        return {task: scores(pipelines[task], row) for task in question.tasks}

    return app


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with a checkpoint a task")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="torch's threads")
    parser.add_argument("--concurrency", type=int, default=40, help="requests that compute at the same time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    uvicorn.run(
        create_app(options.models, options.concurrency), host="127.0.0.1", port=options.port, log_level="warning"
    )


if __name__ == "__main__":
    main()
