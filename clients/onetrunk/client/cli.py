"""The clients' commands. Each lives in its own file."""

from onetrunk.client.commands.ask_repo import ask_repo
from onetrunk.client.commands.bench_repo import bench_repo

__all__ = ["ask_repo", "bench_repo"]
