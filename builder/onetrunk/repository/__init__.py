"""Triton model repositories: their state, their configs, and the one transaction that changes them on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.repository.build import BuildReport as BuildReport
    from onetrunk.repository.build import BuildRequest as BuildRequest
    from onetrunk.repository.build import build_repository as build_repository

_EXPORTS = dict.fromkeys(("BuildReport", "BuildRequest", "build_repository"), "onetrunk.repository.build")


def __getattr__(name: str) -> Any:
    # Imported on first use: build.py needs torch, and a rollback of deploy-head does not.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
