"""The search for each task's head: probes of every depth, teachers, students, and a plan over all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.distill.report import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    # Imported on first use: whoever reads a plan needs no Matplotlib.
    if name == "write_report":
        from onetrunk.distill.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
