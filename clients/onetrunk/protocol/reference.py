"""What a head answered on the dev data: what its answers in production are compared with."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

BINS = 10
"""The bins of a histogram, of equal width."""

# The same bounds as in head.json, where they are explained.
_MAX_LABELS, _MAX_SPANS = 10_000, 131_072

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Histogram = Annotated[tuple[Share, ...], Field(min_length=BINS, max_length=BINS)]


class Reference(BaseModel):
    """A summary of a head's answers on the dev data, as they are served. What a kind of task does not have is None.

    Attributes:
        rows: The number of texts.
        labels: The share of texts that were answered with each label, in the order of the labels; of tagging, with a
            span of each type. Several labels of a text count each.
        none_of_these: The share of texts that were answered with no label.
        confidence: The share of texts by the probability of their likeliest label, in bins from 0 to 1.
        entropy: The mean entropy of the probabilities, as a share of the greatest possible one.
        numbers: The share of texts by their number, in bins over the task's range. What lies outside is in the first
            or the last bin.
        spans: The mean number of spans in a text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    labels: Annotated[tuple[Share, ...], Field(max_length=_MAX_LABELS)] | None = None
    none_of_these: Share | None = None
    confidence: Histogram | None = None
    entropy: Share | None = None
    numbers: Histogram | None = None
    spans: Annotated[float, Field(ge=0, le=_MAX_SPANS)] | None = None
