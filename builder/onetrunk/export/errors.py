"""Errors of exported models: a file cannot be written, differs from torch, or costs a task too much."""

from __future__ import annotations

from collections.abc import Mapping

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.manifest import GateResult


class ExportError(OneTrunkError):
    """A module could not be written as the ONNX file that the repository needs."""


class ParityError(OneTrunkError):
    """An exported model does not answer as the torch module from which it was exported.

    Attributes:
        model: The model's name.
        difference: The greatest difference found; None if names, axes or shapes already differ.
        tolerance: The greatest difference allowed; None if ``difference`` is.
    """

    def __init__(self, model: str, what: str, difference: float | None = None, tolerance: float | None = None) -> None:
        found = "" if difference is None else f": greatest difference {difference:.2e}, allowed {tolerance:.0e}"
        super().__init__(f"{model}: {what}{found}; nothing was published")
        self.model, self.difference, self.tolerance = model, difference, tolerance


class GateError(OneTrunkError):
    """A reduced precision costs a task too much of its metric.

    Attributes:
        results: Task -> the result of the gate, also of the tasks that passed.
        max_loss: The greatest loss allowed, in points.
    """

    def __init__(self, results: Mapping[str, GateResult], max_loss: float, remedy: str) -> None:
        lost = [f"{task} {one.loss:.2f}" for task, one in sorted(results.items()) if not one.passes(max_loss)]
        super().__init__(
            f"points lost on dev data: {', '.join(lost)}; allowed is {max_loss:g}; nothing was published: {remedy}"
        )
        self.results, self.max_loss = results, max_loss
