"""The search for each task's head: probes of every tap, teachers, distilled students, and a plan over all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.distill.pipeline import search
    from onetrunk.distill.report import write_report

__all__ = ["search", "write_report"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a command's --help needs neither torch nor Matplotlib.
    if name == "search":
        from onetrunk.distill.pipeline import search

        return search
    if name == "write_report":
        from onetrunk.distill.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
