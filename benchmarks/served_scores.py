"""Are the heads as good when they are served? Asks a real Triton about whole dev sets and compares with the cards.

    python benchmarks/served_scores.py > docs/results/served_scores.md

Needs the tasks' data (see tasks/*.toml) and a built model_repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onetrunk.admin import AdminClient
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.protocol.names import MULTITASK
from onetrunk.repository.state import required_manifest
from onetrunk.serving import Server
from onetrunk.tasks import Task, find_tasks, load_task, read_examples
from onetrunk.tasks.head_spec import HeadSpec, find_bundles, read_spec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import stack_scores
from onetrunk.tasks.metrics import measure
from onetrunk.training.evaluation import labelled_targets

ROOT = Path(__file__).resolve().parent.parent
BATCH = 16


def served_scores(
    server: AdminClient, trunk: Trunk, task: Task, spec: HeadSpec, max_length: int
) -> tuple[int, dict[str, float]]:
    """Return the rows of the task's dev set, and the metrics of what the server answers.

    Args:
        server: The server.
        trunk: The trunk.
        task: The task.
        spec: Its head.
        max_length: The longest text that is served, in tokens; the head may have been trained on shorter ones.
    """
    dev = read_examples(task, "dev")
    rows = [(row, "") if isinstance(row, str) else row for row in dev.texts]
    scores: list[np.ndarray] = []
    for start in range(0, len(rows), BATCH):
        scores += list(server.ask(MULTITASK, rows[start : start + BATCH], [task.name])[task.name])
    predictions = get_kind(task.kind).answers.predictions(stack_scores(scores), spec)
    targets = labelled_targets(task, dev, trunk=trunk, max_length=max_length).numpy()
    return len(dev), measure(task.metrics, predictions, targets)[0]


def main() -> None:
    """Prints the table."""
    print("`python benchmarks/served_scores.py`: dev scores of what a real Triton answers, beside the bundle's own.")
    print("\n| task | dev rows | metric | card | served | difference |\n|---|---|---|---|---|---|")
    trunk = load_trunk()
    max_length = required_manifest(ROOT / "model_repository").max_length
    with (
        Server(ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0) as server,
        AdminClient(server.grpc_url) as live,
    ):
        served = {folder.name for folder in find_bundles(ROOT / "heads")}
        for task in map(load_task, find_tasks(ROOT / "tasks")):
            if task.name not in served:
                continue
            print(f"asking {task.name} ...", file=sys.stderr)
            spec = read_spec(ROOT / "heads" / task.name)
            rows, scores = served_scores(live, trunk, task, spec, max_length)
            card = spec.scores[task.metric]
            found = scores[task.metric]
            print(
                f"| {task.name} | {rows:,} | {task.metric} | {100 * card:.2f} | {100 * found:.2f} "
                f"| {100 * (found - card):+.2f} |"
            )


if __name__ == "__main__":
    main()
