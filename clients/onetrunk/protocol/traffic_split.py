"""The share of a task's traffic that its candidate answers, and the bounds at which that stops."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class TrafficSplit(BaseModel):
    """A share, and its bounds. Each front judges by the requests that it has split lately.

    Attributes:
        share: The share of the requests, above 0 and at most 1.
        errors: The share of these that the candidate may fail to answer.
        latency: How many times as long as the live head's the candidate's median may be; None for any.
        disagreement: The share of texts that both may answer differently; None for any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(gt=0, le=1)
    errors: float = Field(default=0.02, ge=0, le=1)
    latency: float | None = Field(default=3.0, ge=1)
    disagreement: float | None = Field(default=None, ge=0, le=1)


class CandidateInfo(BaseModel):
    """What an ensemble says of a task's candidate that answers a share of its traffic.

    Attributes:
        version: The candidate's version.
        split: The share, and its bounds.
        reads: What its kind adds to a task's description (see `TaskInfo`), as its own version has it: its thresholds,
            for example. By these its scores are read, not by those of the live head. None says that they are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    split: TrafficSplit
    reads: dict[str, Any] | None = None


class TrialReport(BaseModel):
    """How a candidate does, by the requests that one front has split lately.

    Attributes:
        version: The candidate's version.
        share: The share of the requests that it answers.
        requests: The number of requests that are judged.
        errors: The share of these that it failed to answer, or not in time.
        latency: How many times as long as the live head's its median is; None if that is not known yet.
        disagreement: The share of texts that both answered differently; None if that is not known yet.
        stopped: Why it answers nobody any more; None if it does.
    """

    version: int
    share: float
    requests: int
    errors: float
    latency: float | None
    disagreement: float | None
    stopped: str | None
