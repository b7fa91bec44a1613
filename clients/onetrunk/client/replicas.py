"""The servers of one client, asked in turn. One that did not answer is left out for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from onetrunk.client.retry import doubled

# How long a server is left out after it did not answer: doubled each time that it does not, up to the longest.
FIRST_REST_S, LONGEST_REST_S = 0.25, 5.0


@dataclass(eq=False)
class Replica:
    """One server.

    Attributes:
        address: Its address.
        channel: The connection.
        stub: The methods of the service on it.
        faults: How often in a row it did not answer.
        rests_until: The reading of the clock until which it is left out.
    """

    address: str
    channel: Any
    stub: Any
    faults: int = 0
    rests_until: float = 0.0


class Replicas:
    """The servers that one client asks. Threads may share it.

    Attributes:
        all: The servers.
    """

    def __init__(self, channels: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a server at random, so that the clients of a fleet do not all ask the same one.

        Args:
            channels: Address -> the channel to it.
            clock: The clock, in seconds.
        """
        self.all = [
            Replica(address, channel, service_pb2_grpc.GRPCInferenceServiceStub(channel))
            for address, channel in channels.items()
        ]
        self._clock = clock
        self._turn = random.randrange(len(self.all))
        self._lock = threading.Lock()

    def next(self) -> Replica:
        """Return the server whose turn it is, or the one that is left out for the shortest time if all are."""
        with self._lock:
            self._turn = (self._turn + 1) % len(self.all)
            in_turn = (*self.all[self._turn :], *self.all[: self._turn])
            now = self._clock()
            return min(in_turn, key=lambda replica: max(replica.rests_until - now, 0.0))

    def note(self, replica: Replica, code: grpc.StatusCode | None) -> None:
        """Note how a request to a server ended.

        Args:
            replica: The server.
            code: The status; None if there is none.
        """
        with self._lock:
            if code is grpc.StatusCode.UNAVAILABLE:
                replica.faults += 1
                replica.rests_until = self._clock() + doubled(FIRST_REST_S, replica.faults, LONGEST_REST_S)
            elif code is grpc.StatusCode.OK:
                replica.faults, replica.rests_until = 0, 0.0
