"""A client's requests on their way, and those among them that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Traffic:
    """Keeps count for all calls of one client; requests are futures of gRPC or tasks of asyncio.

    A call that ends early leaves its requests to land unread (flight.ABANDONED_S says why). A caller that
    runs into its deadline again and again must not pile them up on a server that is too slow already, so the
    client's next call sends nothing while it is `crowded`.

    Attributes:
        on_their_way: requests that have not landed.
    """

    def __init__(self, most_abandoned: int) -> None:
        self.on_their_way: set[Any] = set()
        self._abandoned: set[Any] = set()
        self._most_abandoned = most_abandoned

    def sent(self, request: Any) -> None:
        """Counts a request until it lands."""
        self.on_their_way.add(request)
        request.add_done_callback(self.on_their_way.discard)

    def abandon(self, requests: Iterable[Any]) -> None:
        """Counts what a call that is over has left behind, until it lands."""
        for request in requests:
            self._abandoned.add(request)
            request.add_done_callback(self._abandoned.discard)  # at once, if it has landed meanwhile

    def crowded(self) -> bool:
        """Whether too many requests are on their way for nobody."""
        return len(self._abandoned) >= self._most_abandoned
