"""The search for each task's head: probes of every tap, teachers, distilled students, and a plan over all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.distill.pipeline import search

__all__ = ["search"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a command's --help needs neither torch nor Optuna.
    if name == "search":
        from onetrunk.distill.pipeline import search

        return search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
