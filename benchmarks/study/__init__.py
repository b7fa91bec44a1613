"""What a study came to: figures, tables and plots, all made from recorded runs, without training anything."""

from benchmarks.study.events import write_events
from benchmarks.study.report import write_quality_report

__all__ = ["write_events", "write_quality_report"]
