"""Every error that OneTrunk raises on purpose, told apart by what a caller can do about it.

A message is one line: what was found, what is allowed, what to do. A command prints it and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Below it, words have little more in common than some letters, such as `text` and `intent`.
_ALIKE = 0.7
# What is longer is no name that was mistyped. To compare it, or with more, would take long.
_LONGEST_WORD, _MOST_WORDS = 64, 200
# Shorter parts of words are alike too often.
_SHORTEST_PART = 3


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `` (did you mean X?)`` if a known word, or a part of one such as ``class_weights``, is similar."""
    if len(word) > _LONGEST_WORD or len(known) > _MOST_WORDS:
        return ""
    # Where several have a part, the first is meant.
    words = [one for one in reversed(list(known)) if len(one) <= _LONGEST_WORD]
    parts = {part: one for one in words for part in one.casefold().split("_") if len(part) >= _SHORTEST_PART}
    for meant in ({one.casefold(): one for one in words}, parts):
        if close := difflib.get_close_matches(word.casefold(), meant, n=1, cutoff=_ALIKE):
            return f" (did you mean {meant[close[0]]}?)"
    return ""


def counted(count: int, one: str, several: str) -> str:
    """Return a count with its noun and verb, such as ``1 row has`` or ``1,200 rows have``."""
    return f"1 {one}" if count == 1 else f"{count:,} {several}"


class OneTrunkError(Exception):
    """Something failed: training, a check, an export, a server."""

    exit_code = 1


class UserError(OneTrunkError):
    """The user's input is wrong, and the same input will fail again."""

    exit_code = 2


class UnknownTask(UserError, LookupError):  # noqa: N818 - named as a state, not a mistake
    """A task that the server does not serve."""


@dataclass(frozen=True)
class Problem:
    """One fault in the caller's input.

    Attributes:
        row: The index into the caller's list, or None if the fault concerns the whole call.
        message: What was found and what is allowed.
    """

    row: int | None
    message: str

    def __str__(self) -> str:
        return self.message if self.row is None else f"row {self.row}: {self.message}"


class BadInput(UserError, ValueError):  # noqa: N818 - named as a state, not a mistake
    """The caller's input cannot be answered.

    Attributes:
        problems: Every fault that was found, in row order. Faults that the client finds are complete and are reported
            before anything is sent; faults that the server finds arrive one row at a time.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - 1
        tail = f" (and {counted(more, 'more problem', 'more problems')})" if more else ""
        super().__init__(f"{self.problems[0]}{tail}")

    @classmethod
    def of_call(cls, message: str) -> BadInput:
        """Return the error for a fault that concerns the whole call."""
        return cls([Problem(None, message)])


class KeyRefused(BadInput):
    """The server answers only those who send one of its API keys."""


class TlsError(UserError):
    """Client and server do not agree on TLS: one of them uses none, or a certificate is not accepted."""


class NotReady(OneTrunkError):  # noqa: N818 - named as a state, not a mistake
    """No server answers, or it does not serve the model at the moment. Trying again later may work."""


class DeadlineExceeded(OneTrunkError, TimeoutError):  # noqa: N818 - gRPC's own name for it
    """The whole call, with everything it had to send, did not finish in its time."""


class ServerError(OneTrunkError):
    """The server failed: it did not start, a request failed, or a response could not be read.

    Attributes:
        status: The name of the gRPC status, or None if the error did not come from gRPC.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status
