"""docker-compose.yml as a user without any setting gets it."""

from __future__ import annotations

from typing import Any

import pytest

from .compose_file import read_compose


@pytest.fixture(scope="session")
def services() -> dict[str, dict[str, Any]]:
    """All services with every variable at its default."""
    found: dict[str, dict[str, Any]] = read_compose({})["services"]
    return found
