"""The demo of `make demo`: serve the repository of this checkout with a real Triton and ask it about a few texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from onetrunk.client import Client
from onetrunk.client.display import answer_table
from onetrunk.client.lines import Line
from onetrunk.serving import Server

HERE = Path(__file__).parent


def main(repository: Path = HERE.parent / "model_repository") -> None:
    """Start the server on free loopback ports, ask it about demo.jsonl, print the answers, and stop it."""
    rows = [json.loads(line) for line in (HERE / "demo.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [Line(number, row["text"], row.get("text_pair")) for number, row in enumerate(rows, 1)]
    print(f"starting Triton on {repository.name} ...", file=sys.stderr)
    with (
        Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url) as client,
    ):
        answers = client.predict([line.text for line in lines], [line.pair for line in lines])
        Console().print(answer_table(zip(lines, answers, strict=True), top=1))


if __name__ == "__main__":
    main()
