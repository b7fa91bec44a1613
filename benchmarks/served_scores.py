"""Are the heads as good when they are served? Asks a real Triton about whole dev sets and compares with the cards.

    python benchmarks/served_scores.py > docs/results/served_scores.md

Needs the tasks' data (see tasks/*.toml) and a built model_repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from builder.model.head_spec import read_spec
from builder.tasks import Task, find_tasks, load_task, read_examples
from builder.tasks.metrics import measure
from clients import Client
from server import Server

ROOT = Path(__file__).resolve().parent.parent


def served_scores(client: Client, task: Task) -> tuple[int, dict[str, float]]:
    """Rows of the task's dev set, and the metrics of what the server answers."""
    dev = read_examples(task, "dev")
    texts = [row if isinstance(row, str) else row[0] for row in dev.texts]
    pairs = None if task.form == "single" else [row[1] for row in dev.texts]
    answers = client.predict(texts, pairs, [task.name], timeout_s=900)
    targets = np.array(dev.targets)
    if task.labels:
        predictions = np.array([task.labels.index(answer[task.name].label or "") for answer in answers])
    else:
        predictions = np.array([answer[task.name].score for answer in answers])
    return len(dev), measure(task.metrics, predictions, targets)[0]


def main() -> None:
    """Prints the table."""
    print("`python benchmarks/served_scores.py`: dev scores of what a real Triton answers, beside the bundle's own.")
    print("\n| task | dev rows | metric | card | served | difference |\n|---|---|---|---|---|---|")
    with (
        Server(ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url) as client,
    ):
        for file in find_tasks(ROOT / "tasks"):
            task = load_task(file)
            print(f"asking {task.name} ...", file=sys.stderr)
            rows, scores = served_scores(client, task)
            card = read_spec(ROOT / "heads" / task.name).scores[task.metric]
            served = scores[task.metric]
            print(
                f"| {task.name} | {rows:,} | {task.metric} | {100 * card:.2f} | {100 * served:.2f} "
                f"| {100 * (served - card):+.2f} |"
            )


if __name__ == "__main__":
    main()
