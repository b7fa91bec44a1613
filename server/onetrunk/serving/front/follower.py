"""``Follower``: every Triton that appears behind the front is compared with the repository's files soon after."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import NotReady, OneTrunkError
from onetrunk.protocol.signature import Verifier
from onetrunk.serving.following import FOLLOW_AFTER_S, follow
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.settings import TritonAddress

log = logging.getLogger("onetrunk.serving.front")

LOOK_EVERY_S = 0.5


def follow_at(repository: Path, verify_key: Path | None, address: TritonAddress) -> list[str]:
    """Make the Triton at an address serve what the files say; see `onetrunk.serving.following.follow`."""
    verifier = None if verify_key is None else Verifier(verify_key)
    with AdminClient(address.grpc) as server:
        return follow(repository, server, verifier)


class Follower:
    """Has each Triton that starts follow the files, at some moments after it is ready."""

    def __init__(
        self,
        gateway: Gateway,
        act: Callable[[TritonAddress], list[str]],
        after_s: Sequence[float] = FOLLOW_AFTER_S,
    ) -> None:
        """Follow nobody yet.

        Args:
            gateway: The way to Triton, which counts those that appear.
            act: Makes the Triton at an address follow, and returns what was loaded. It may block.
            after_s: The moments, in seconds after a Triton is ready.
        """
        self._gateway, self._act, self._after_s = gateway, act, after_s

    @classmethod
    def of(cls, gateway: Gateway, repository: Path, verify_key: Path | None = None) -> Follower:
        """Return the follower of a repository's files, whose manifest must be signed by the key, if there is one."""
        return cls(gateway, partial(follow_at, repository, verify_key))

    async def run(self) -> None:
        """Follow, for ever."""
        known, due = 0, list[float]()
        while True:
            if self._gateway.arrivals != known:
                known = self._gateway.arrivals
                due = [time.monotonic() + seconds for seconds in self._after_s]
            if due and time.monotonic() >= due[0]:
                del due[0]
                await self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        address = self._gateway.triton.address
        if address is None:
            return
        try:
            loaded = await asyncio.to_thread(self._act, address)
        except NotReady:  # it went away, and another one will come
            return
        except OneTrunkError as error:
            log.error("Triton does not serve what the files say: %s", error)
        except Exception:
            log.exception("Triton was not compared with the files")
        else:
            if loaded:
                log.warning("loaded %s, as the files say; Triton started with other ones", ", ".join(loaded))
