"""The output of a head that answers for every token."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class TokenOutput(nn.Linear):
    """A linear output, applied to every token's state.

    Attributes:
        by_token: tells a head to keep all tokens' states.
        transitions: of a CRF, a score for each tag after each tag; None without one. *Shape:* (tags, tags)
    """

    by_token: ClassVar[bool] = True

    def __init__(self, width: int, tags: int, *, transitions: bool) -> None:
        super().__init__(width, tags)
        self.transitions = nn.Parameter(torch.zeros(tags, tags)) if transitions else None
