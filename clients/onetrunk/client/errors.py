"""The errors of the client, told apart by what a caller can do about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OneTrunkError(Exception):
    """Any failure that the client raises on purpose. Commands exit with ``exit_code``."""

    exit_code = 1


class NotReady(OneTrunkError):  # noqa: N818 - named as a state, not a mistake
    """No server answers, or it does not serve the model (any more, or yet). Trying again later may work."""


class DeadlineExceeded(OneTrunkError, TimeoutError):  # noqa: N818 - gRPC's own name for it
    """The call, with everything it had to send, was not done in its time."""


class ServerError(OneTrunkError):
    """The server failed or gave an answer that cannot be read.

    Attributes:
        status: name of the gRPC status, or None where an answer came but does not fit.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnknownTask(OneTrunkError, LookupError):  # noqa: N818 - named as a state, not a mistake
    """A task that the server does not serve."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """What is wrong with the input.

    Attributes:
        row: index into the caller's list, or None where the whole call is meant.
        message: what was found and what is allowed.
    """

    row: int | None
    message: str

    def __str__(self) -> str:
        return self.message if self.row is None else f"row {self.row}: {self.message}"


class BadInput(OneTrunkError, ValueError):  # noqa: N818 - named as a state, not a mistake
    """The caller's input cannot be answered.

    Attributes:
        problems: all that were found, by row. What the client finds itself comes complete and before anything
            is sent; what the server finds comes one row at a time.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - 1
        tail = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        super().__init__(f"{self.problems[0]}{tail}")
