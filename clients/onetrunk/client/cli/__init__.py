"""The commands ``ask-repo`` and ``bench-repo``."""

from onetrunk.client.cli.ask_repo import ask_repo
from onetrunk.client.cli.bench_repo import bench_repo

__all__ = ["ask_repo", "bench_repo"]
