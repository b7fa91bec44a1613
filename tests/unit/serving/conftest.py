"""The repository that the launcher is tested on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def repository(handmade_repository: Path) -> Path:
    """A small repository written by hand, which a test may break."""
    return handmade_repository
