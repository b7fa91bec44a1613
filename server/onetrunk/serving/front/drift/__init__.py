"""Drift: how far the answers of late are from those on the dev data, task by task."""

from onetrunk.serving.front.drift.monitor import DriftMonitor

__all__ = ["DriftMonitor"]
