"""The tasks that peers are asked for."""

from __future__ import annotations

# Task -> outputs of its classifier, as GLUE has them; 1 is a regression.
TASKS = {"cola": 2, "mnli": 3, "mrpc": 2, "qnli": 2, "qqp": 2, "rte": 2, "sst2": 2, "stsb": 1}
REGRESSIONS = frozenset(task for task, outputs in TASKS.items() if outputs == 1)
