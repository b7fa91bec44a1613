"""Peer: LitServe, one API that batches requests and runs one transformers pipeline a task.

    python serve_litserve.py --models FOLDER --port N --threads T

POST /predict with {"text": ..., "text_pair": ..., "tasks": [...]} answers {task: [{"label": ..., "score": ...}, ...]}.
Stands alone: it imports only what requirements.txt installs.
"""

# Without postponed annotations: LitServe reads those of decode_request.
import argparse
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import HTTPException
from transformers import pipeline

MAX_BATCH_SIZE = 8
# At 0 LitServe's worker polls its queue without a pause and takes a whole core for it.
BATCH_TIMEOUT_S = 0.005


class Classifiers(litserve.LitAPI):
    """All tasks behind one endpoint."""

    def __init__(self, models: Path, threads: int) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self.models = models
        self.threads = threads

    def setup(self, device: str) -> None:
        """Loads the models, in the process that will run them."""
        torch.set_num_threads(self.threads)
        self.pipelines = {
            config.parent.name: pipeline("text-classification", model=str(config.parent), device=device)
            for config in sorted(self.models.glob("[!.]*/config.json"))
        }

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Checks a request before it joins a batch."""
        unknown = sorted(set(request["tasks"]) - set(self.pipelines))
        if unknown:
            raise HTTPException(422, f"no such tasks: {', '.join(unknown)}; known are: {', '.join(self.pipelines)}")
        return request

    @torch.inference_mode()
    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers a batch, a task at a time: each with the rows that ask for it."""
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for task, pipe in self.pipelines.items():
            asking = [place for place, request in enumerate(requests) if task in request["tasks"]]
            if not asking:
                continue
            rows = [
                {"text": requests[place]["text"], "text_pair": requests[place].get("text_pair")} for place in asking
            ]
            scores = pipe(
                rows,
                batch_size=len(rows),
                top_k=None,
                truncation=True,
                function_to_apply="none" if pipe.model.config.num_labels == 1 else "softmax",
            )
            for place, answer in zip(asking, scores, strict=True):
                answers[place][task] = answer
        return answers


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with a checkpoint a task")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="torch's threads, in all workers together")
    parser.add_argument("--workers", type=int, default=1, help="processes that each hold all models")
    options = parser.parse_args()
    server = litserve.LitServer(
        Classifiers(options.models, max(1, options.threads // options.workers)),
        accelerator="cpu",
        workers_per_device=options.workers,
        # A request that waits long under load is late, not wrong.
        timeout=False,
    )
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
