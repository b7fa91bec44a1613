"""Changing what a running server serves, one head at a time: add, update, try beside the live head, roll back, remove.

Every change goes the same way (``change.py``): the new files are added, which touches nothing that is served; the
server loads them; an ensemble under another name proves the whole of what is to come; then the ensembles are
switched, on disk and on the server, and asked again. The repository on disk is the truth: the next deployment finishes
what a deployment that died left undone, and a server that is restarted serves what the files say.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.deploy.deployer import Deployer, DeploymentReport

_EXPORTS = {"Deployer": "onetrunk.deploy.deployer", "DeploymentReport": "onetrunk.deploy.deployer"}

__all__ = ["Deployer", "DeploymentReport"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that importing the package loads nothing.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
