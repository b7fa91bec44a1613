"""The builder's commands. Each lives in its own file and imports torch only when it runs."""

from builder.commands.build_repo import build_repo
from builder.commands.deploy_head import deploy_head
from builder.commands.train_head import train_head

__all__ = ["build_repo", "deploy_head", "train_head"]
