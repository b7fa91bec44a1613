"""What both doors have in common: limits, the admin key, tasks, and the way to Triton."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from onetrunk.client import AsyncClient
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.core import CATALOGUE_AGE_S
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import ENSEMBLES
from onetrunk.serving.front.admission import Admission, RefusedError, UnauthorizedError
from onetrunk.serving.front.parts import TURN, part
from onetrunk.serving.front.questions import Question, check_sizes, check_texts
from onetrunk.serving.front.settings import FrontSettings, TritonAddress
from onetrunk.serving.front.triton import HttpAnswer, Triton, TritonDownError

log = logging.getLogger("onetrunk.serving.front")

T = TypeVar("T")

SERVICE = "/inference.GRPCInferenceService/"
# While Triton starts, nobody knows the tasks.
RETRY_S = 0.5
TAGGING = "tagging"


class Gateway:
    """The way of a request to Triton.

    Attributes:
        settings: What the front was started with.
        triton: Triton.
        admission: Counts the requests of both doors.
        arrivals: How many times a Triton has appeared that told its tasks, after a start or a restart.
    """

    def __init__(self, settings: FrontSettings, triton: Triton) -> None:
        self.settings = settings
        self.triton = triton
        self.admission = Admission(settings.limits)
        self.arrivals = 0
        self._client: AsyncClient | None = None
        self._client_of: TritonAddress | None = None
        self._known: Mapping[str, TaskInfo] = {}

    def is_admin(self, key: str | bytes | None) -> bool:
        """Return whether this is the admin key. The time that this takes says nothing about the key."""
        own = self.settings.admin_key
        if own is None or key is None:
            return False
        given = key.encode("utf-8", "replace") if isinstance(key, str) else key
        return hmac.compare_digest(given, own.get_secret_value().encode())

    def check_key(self, authorization: str | bytes | None, admin_key: str | bytes | None) -> None:
        """Check that a client may ask. The time that this takes says nothing about the keys.

        Args:
            authorization: The header of this name, which is to be ``Bearer KEY``.
            admin_key: The header with the admin key, which is enough.

        Raises:
            UnauthorizedError: It has no key of this front.
        """
        keys = self.settings.api_keys
        if not keys or self.is_admin(admin_key):
            return
        given = authorization.encode("utf-8", "replace") if isinstance(authorization, str) else authorization or b""
        scheme, _, key = given.partition(b" ")
        # All are compared, whichever is right.
        equal = [hmac.compare_digest(key, one.get_secret_value().encode()) for one in keys]
        if scheme.lower() != b"bearer" or not any(equal):
            raise UnauthorizedError

    async def check(self, question: Question) -> None:
        """Check an inference request.

        Raises:
            RefusedError: It is refused.
            TritonDownError: Triton does not say which tasks there are.
        """
        check_sizes(question, self.settings.limits)
        if question.classified:
            tasks = (await self.catalogue()).tasks
            for output in question.classified:
                if output in tasks and tasks[output].read_kind == TAGGING:
                    raise RefusedError(
                        400,
                        f"{output} answers by token, and labels of the classification extension go by text: leave "
                        f"`classification` out, and read the numbers of the labels from {output}'s scores",
                    )

    def check_texts(self, texts: Sequence[str], pairs: Sequence[str | None]) -> int:
        """Check texts against the limits, and return their size in bytes: see `questions.check_texts`."""
        return check_texts(texts, pairs, self.settings.limits)

    async def infer(self, size: int, send: Callable[[], Awaitable[T]]) -> T:
        """Wait for a turn, and send an inference request.

        A client that hangs up while it waits gives its place away at once. Once the request is sent, its turn is held
        until Triton has answered, so that hanging up makes no room for the next one.

        Args:
            size: The size of the request in bytes.
            send: Sends the request.

        Raises:
            RefusedError: Too many requests wait, or they are too large together.
        """
        with part(TURN):
            turn = await self.admission.turn(size)
        return await self.triton.uncancelled(self._sent(turn, send))

    async def _sent(self, turn: AbstractContextManager[None], send: Callable[[], Awaitable[T]]) -> T:
        with turn:
            return await send()

    async def call(self, method: str, request: bytes, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
        """Send another gRPC call: see `Triton.call`."""
        return await self.triton.uncancelled(self.triton.call(method, request, metadata))

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        """Send another request over HTTP: see `Triton.ask` for errors.

        Args:
            method: The method.
            path: The path, which was checked.
            headers: The headers to pass on.
            body: The body, or nothing.
        """
        return await self.triton.uncancelled(self.triton.ask(method, path, headers, body))

    @property
    def last_tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks as they were read last; none before the first time."""
        return self._known

    def known_tasks(self, question: Question) -> Sequence[str]:
        """Return the tasks that a request asks, as far as they are known at the moment."""
        if question.model not in ENSEMBLES:
            return ()
        return [name for name in question.outputs if name in self._known] if question.outputs else list(self._known)

    def unnamed_tasks(self) -> Sequence[str]:
        """Return the tasks that a request in JSON asks if it names none, as far as they are known at the moment."""
        return [name for name, task in self._known.items() if not task.on_request]

    async def remember_tasks(self) -> None:
        """Read the tasks again every few seconds, for ever, so that `known_tasks` are those that are served."""
        last: tuple[TritonAddress, tuple[int, int] | None] | None = None
        while True:
            pause_s = CATALOGUE_AGE_S
            try:
                await self.catalogue(fresh=True)  # of what was read just before, this would be the second ten seconds
                address = self.triton.address
                now = (address, address.start()) if address is not None else None
                if last != now:
                    last, self.arrivals = now, self.arrivals + 1
            except TritonDownError:
                last, pause_s = None, CATALOGUE_AGE_S if self._known else RETRY_S
            except Exception:
                log.exception("the tasks were not read; they will be read again in %g s", pause_s)
            await asyncio.sleep(pause_s)

    async def catalogue(self, *, fresh: bool = False) -> Catalogue:
        """Return the tasks and limits of the server, which its client reads again every few seconds.

        Args:
            fresh: Whether they are read now, however long ago that was.

        Raises:
            TritonDownError: Triton does not run, or does not tell them.
        """
        try:
            found = await self.triton.uncancelled(self.client().catalogue(fresh=fresh))
        except OneTrunkError as error:
            raise TritonDownError from error
        self._known = found.tasks
        return found

    def client(self) -> AsyncClient:
        """Return the client of the Triton that runs now.

        Raises:
            TritonDownError: None does.
        """
        address = self.triton.address
        if address is None:
            raise TritonDownError
        if self._client is None or address != self._client_of:
            # The old one is left to its calls, which end with their Triton.
            self._client, self._client_of = AsyncClient(address.grpc, retries=2), address
        return self._client
