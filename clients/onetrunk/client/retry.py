"""How long a call may take, and when it may send something again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from onetrunk.client.fault import Fault
from onetrunk.protocol.errors import DeadlineExceeded

Clock = Callable[[], float]


@dataclass(frozen=True)
class Deadline:
    """The one end of a whole call, whatever it sends."""

    timeout_s: float
    clock: Clock = time.monotonic
    ends: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", self.clock() + self.timeout_s)

    def left_s(self) -> float:
        """Seconds left, always more than 0.

        Raises:
            DeadlineExceeded: none is left.
        """
        left = self.ends - self.clock()
        if left <= 0:
            raise DeadlineExceeded(f"not done within {self.timeout_s:g} s")
        return left


@dataclass(frozen=True)
class Backoff:
    """Pauses that double, each cut by chance by up to a half so that clients do not return all at once.

    Attributes:
        retries: how often one request may be sent again.
        first_s: the longest first pause.
        longest_s: no pause is longer.
    """

    retries: int
    first_s: float = 0.1
    longest_s: float = 2.0

    def pause_s(self, fault: Fault, tries: int, deadline: Deadline) -> float:
        """How long to wait before sending a request again that has failed ``tries`` times.

        Raises:
            OneTrunkError: the fault's own error, where another try cannot help, is one too many, or would
                come after the deadline.
        """
        pause = min(self.longest_s, self.first_s * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if not fault.passing or tries > self.retries or pause >= deadline.ends - deadline.clock():
            raise fault.error
        return pause
