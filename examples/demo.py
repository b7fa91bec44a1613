"""What `make demo` shows: a real Triton on the repository in this folder, asked about a few texts and stopped again."""

from __future__ import annotations

import sys
from pathlib import Path

from clients.cli import ask_repo
from server import Server

HERE = Path(__file__).parent


def main() -> None:
    """Starts the server on free ports of loopback, asks it as `ask-repo` does, and stops it."""
    repository = HERE.parent / "model_repository"
    print(f"starting Triton on {repository.name} ...", file=sys.stderr)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        ask_repo(["--url", server.grpc_url, "--file", str(HERE / "demo.jsonl")], standalone_mode=False)


if __name__ == "__main__":
    main()
