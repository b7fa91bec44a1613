"""Reading docker-compose.yml as Compose reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
TRITONS = ("triton", "triton-gpu")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Reads docker-compose.yml with ${VARIABLE:-default} put in, as Compose does it."""
    text = VARIABLE.sub(lambda match: variables.get(match[1]) or match[2], COMPOSE.read_text(encoding="utf-8"))
    compose: dict[str, Any] = yaml.safe_load(text)
    return compose


def flags(command: list[str]) -> dict[str, list[str]]:
    """Gives a command's --flag=value arguments: flag -> its values, in order."""
    found: dict[str, list[str]] = {}
    for argument in command:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            found.setdefault(name, []).append(value)
    return found
