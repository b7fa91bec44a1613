"""Triton model repositories: their state, their configs, and the one transaction that changes them on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.repository.build import BuildReport, build_repository
    from onetrunk.repository.plan import BuildRequest
    from onetrunk.repository.state import RepositoryState, read_state
    from onetrunk.repository.transaction import Transaction

_EXPORTS = {
    "BuildReport": "onetrunk.repository.build",
    "BuildRequest": "onetrunk.repository.plan",
    "RepositoryState": "onetrunk.repository.state",
    "Transaction": "onetrunk.repository.transaction",
    "build_repository": "onetrunk.repository.build",
    "read_state": "onetrunk.repository.state",
}

__all__ = ["BuildReport", "BuildRequest", "RepositoryState", "Transaction", "build_repository", "read_state"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a build needs torch, and a rollback does not.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
