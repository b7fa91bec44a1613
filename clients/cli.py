"""The clients' commands. Each lives in its own file."""

from clients.commands.ask_repo import ask_repo
from clients.commands.bench_repo import bench_repo

__all__ = ["ask_repo", "bench_repo"]
