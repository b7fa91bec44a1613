"""What the gate found for one task: its metric by the fp32 files and by the files that are served."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class GateResult(BaseModel):
    """One task's metric on its dev data, twice.

    Attributes:
        metric: its name.
        rows: how many rows it was measured on.
        fp32: by the fp32 files, as a share: 0.5 is 50%.
        reduced: by the files that are served.
        key: hash over all that both were made from; a result with another key is about something else.
        data: hash over the rows; empty where an earlier build did not note it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    rows: int
    fp32: float
    reduced: float
    key: str
    data: str = ""

    @property
    def loss(self) -> float:
        """What is lost, in points; below nought where the metric rose."""
        return 100 * (self.fp32 - self.reduced)
