"""What `make demo` shows: a real Triton on this checkout's repository, asked about a few texts and stopped again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clients.cli import ask_repo
from server import Server

HERE = Path(__file__).parent


def main() -> None:
    """Starts the server on free ports of loopback, asks it what `ask-repo` would, and stops it."""
    repository = HERE.parent / "model_repository"
    rows = [json.loads(line) for line in (HERE / "demo.jsonl").read_text(encoding="utf-8").splitlines()]
    print(f"starting Triton on {repository.name} ...", file=sys.stderr)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        arguments = [row["text"] for row in rows]
        for row in rows:
            arguments += ["--pair", row.get("text_pair", "")]
        ask_repo([*arguments, "--url", server.grpc_url], standalone_mode=False)


if __name__ == "__main__":
    main()
