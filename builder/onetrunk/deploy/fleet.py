"""``Fleet``: the servers on one repository. Each is told the same, all at once, and what each answers is kept."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from onetrunk.admin import AdminClient
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.address import client_addresses, is_name_of_several, join_address, split_address
from onetrunk.protocol.errors import NotReady, OneTrunkError, UserError
from onetrunk.protocol.reading import read_regular

T = TypeVar("T")

STEP_TIMEOUT_S = 120.0
"""How long one replica may take for one step, such as loading a version."""

# Who has not answered by then is named while the others wait for it.
_SLOW_S = 5.0
_LOOK_EVERY_S = 1.0
_MAX_LIST_BYTES = 64 * 1024
_DNS = "dns:"

Connect = Callable[[str], AdminClient]
"""Makes the connection to the server at an address."""


class Servers:
    """The addresses of a fleet, as ``--servers`` names them.

    They are a list separated by commas; ``@FILE`` with one on each line; or ``dns:NAME:PORT`` for every address of a
    name, such as a headless service, which is resolved anew each time.
    """

    def __init__(self, named: str) -> None:
        """Read the list.

        Args:
            named: The value of ``--servers``.

        Raises:
            UserError: It names no server, or one that cannot be reached in this way, or the file cannot be read.
        """
        self._named = named
        listed = _read_list(Path(named[1:])) if named.startswith("@") else named
        if listed.startswith(_DNS) and not is_name_of_several(listed):
            listed = f"{_DNS}///{listed.removeprefix(_DNS)}"
        try:
            self._listed = client_addresses(listed)
        except ValueError as error:
            raise UserError(f"--servers {named}: {error}") from None

    @property
    def changes(self) -> bool:
        """Whether the addresses may be others the next time."""
        return any(map(is_name_of_several, self._listed))

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of all servers.

        Raises:
            NotReady: A name has no address.
        """
        found = [one for named in self._listed for one in (_resolve(named) if is_name_of_several(named) else (named,))]
        return tuple(dict.fromkeys(found))


def _read_list(path: Path) -> str:
    try:
        lines = read_regular(path, max_bytes=_MAX_LIST_BYTES).decode().splitlines()
    except FileNotFoundError:
        raise UserError(f"--servers @{path}: no such file: give one with an address on each line") from None
    except UnicodeDecodeError:
        raise UserError(f"--servers @{path}: it is no text: give a file with an address on each line") from None
    found = [line.partition("#")[0].strip() for line in lines]
    return ",".join(line for line in found if line)


def _resolve(name: str) -> tuple[str, ...]:
    host, port = split_address(name)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotReady(
            f"--servers {name}: {host} has no address ({error.strerror}): is a replica ready, and the name right?"
        ) from None
    hosts = sorted({str(address[0]) for *_, address in found})
    return tuple(join_address(one, port) for one in hosts)


State = Literal["done", "failed", "back", "unknown"]


@dataclass(frozen=True)
class ReplicaAnswer:
    """What became of one replica in an operation.

    Attributes:
        address: Its address.
        state: ``done``; ``failed`` if the operation failed there; ``back`` if it failed elsewhere, and this replica
            serves what it served before; ``unknown`` if it did not follow the others back, or came late and did not
            follow them: what it serves is not known.
        reason: What it answered, if it failed or is unknown.
        seconds: Step -> how long it took there.
    """

    address: str
    state: State
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


class FleetError(OneTrunkError):
    """A step failed on some replicas.

    Attributes:
        replicas: What became of each replica.
    """

    def __init__(self, message: str, replicas: Sequence[ReplicaAnswer] = ()) -> None:
        super().__init__(message)
        self.replicas = tuple(replicas)


class Fleet:
    """The servers on one repository: none, if only the files are changed, one, or several.

    A single server is told everything in the calling thread, and its errors are raised as they are.

    Attributes:
        replicas: The servers at the moment.
    """

    def __init__(
        self,
        servers: Callable[[], Sequence[str]],
        connect: Connect,
        *,
        step_timeout_s: float | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        """Note the servers; ask nobody.

        Args:
            servers: Returns the addresses, whenever `refresh` is called.
            connect: Makes the connection to one.
            step_timeout_s: How long one of several may take for one step; None for as long as its calls may.
            progress: Called while a slow one is waited for.
        """
        self.replicas: tuple[AdminClient, ...] = ()
        self._servers, self._connect, self._progress = servers, connect, progress
        self._step_timeout_s = step_timeout_s
        self.begin()

    @property
    def first(self) -> AdminClient | None:
        """The first server; None if there is none."""
        return self.replicas[0] if self.replicas else None

    @property
    def is_several(self) -> bool:
        """Whether there is more than one server, or one out of a list that might have more."""
        return self._step_timeout_s is not None

    def __bool__(self) -> bool:
        return bool(self.replicas)

    def begin(self, unfailed: State = "back") -> None:
        """Forget what the replicas answered.

        Args:
            unfailed: What is said of the others if a step fails on some: ``back``, as then nothing is changed anywhere;
                or ``done``, where each is brought in line by itself.
        """
        self._unfailed = unfailed
        self._failed: dict[str, str] = {}
        self._unknown: dict[str, str] = {}
        self._seconds: dict[str, dict[str, float]] = {}
        self._gone_back = False

    def refresh(self) -> tuple[AdminClient, ...]:
        """Look again which servers there are, and return those that are new.

        Raises:
            OneTrunkError: They are not known, or one may not be connected to.
        """
        known = {replica.url: replica for replica in self.replicas}
        addresses = self._servers()
        new = {address: self._connect(address) for address in addresses if address not in known}
        for address in known.keys() - set(addresses):
            known[address].close()
        self.replicas = tuple((known | new)[address] for address in addresses)
        return tuple(new.values())

    def close(self) -> None:
        """Close all connections."""
        for replica in self.replicas:
            replica.close()

    def each(
        self, step: str, action: Callable[[AdminClient], T], replicas: Sequence[AdminClient] | None = None
    ) -> dict[str, T]:
        """Carry out a step on every server, all at once.

        Args:
            step: What the step does, for messages.
            action: What to do with one server.
            replicas: The servers; None for all.

        Returns:
            Address -> what the action returned.

        Raises:
            OneTrunkError: It failed on some. Then each has ended, one way or another.
        """
        found, failed = self._attempt(step, action, self.replicas if replicas is None else replicas)
        if failed:
            if not self.is_several:
                raise next(iter(failed.values()))
            self._failed |= {address: f"{step}: {reason_at(address, error)}" for address, error in failed.items()}
            raise self._error(step, failed)
        return found

    def look(self, action: Callable[[AdminClient], T], otherwise: Callable[[str, Exception], T]) -> tuple[T, ...]:
        """Ask every server, all at once, and return what was found, in order.

        Args:
            action: Asks one server.
            otherwise: Makes of an address, and of the error there, what takes the place of an answer.
        """
        found, failed = self._attempt("ask", action, self.replicas)
        return tuple(
            found[one.url] if one.url in found else otherwise(one.url, failed[one.url]) for one in self.replicas
        )

    def refuse(self, address: str, reason: str) -> FleetError:
        """Note that what a replica answered cannot be right; return the error to raise."""
        self._failed[address] = reason
        return FleetError(f"{address}: {reason}")

    def take_back(self, action: Callable[[AdminClient], object]) -> Mapping[str, BaseException]:
        """Bring every server back to what it served before, as far as it answers.

        Args:
            action: What to do with one server.

        Returns:
            Address -> why it did not follow.
        """
        self._gone_back = True
        _, failed = self._attempt("go back", action, self.replicas)
        self._unknown |= {address: f"go back: {reason_at(address, error)}" for address, error in failed.items()}
        return failed

    def take_in(self, action: Callable[[AdminClient], object]) -> None:
        """Have servers that appeared since the operation began follow the others. One that does not is told of."""
        if not self.is_several:
            return
        try:
            new = self.refresh()
        except OneTrunkError:  # a name that has no address at this moment; the next operation finds who is there
            return
        _, failed = self._attempt("follow", action, new)
        self._unknown |= {address: f"follow: {reason_at(address, error)}" for address, error in failed.items()}

    def answers(self) -> tuple[ReplicaAnswer, ...]:
        """Return what became of each replica since `begin`; nothing for a single server."""
        if not self.is_several:
            return ()
        return tuple(self._answer(replica.url) for replica in self.replicas)

    def _answer(self, address: str) -> ReplicaAnswer:
        reasons = [found[address] for found in (self._failed, self._unknown) if address in found]
        state: State = "back" if self._gone_back else "done"
        if address in self._unknown:
            state = "unknown"
        elif address in self._failed:
            state = "failed"
        return ReplicaAnswer(address, state, "; ".join(reasons), self._seconds.get(address, {}))

    def _attempt(
        self, step: str, action: Callable[[AdminClient], T], replicas: Sequence[AdminClient]
    ) -> tuple[dict[str, T], dict[str, Exception]]:
        """Return address -> result, and address -> error. An interruption from the keyboard ends the waiting."""

        def act(replica: AdminClient) -> T:
            began = time.monotonic()
            try:
                with replica.within(self._step_timeout_s):
                    return action(replica)
            finally:
                seconds = self._seconds.setdefault(replica.url, {})
                seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - began, 3)

        if len(replicas) == 1:
            return _collect({replicas[0].url: _done(act, replicas[0])})
        if not replicas:
            return {}, {}
        with ThreadPoolExecutor(len(replicas)) as pool:
            began = time.monotonic()
            futures = {replica.url: pool.submit(act, replica) for replica in replicas}
            while waiting := wait(futures.values(), timeout=_LOOK_EVERY_S).not_done:
                if (waited := time.monotonic() - began) >= _SLOW_S:
                    slow = [address for address, future in futures.items() if future in waiting]
                    done = len(futures) - len(slow)
                    self._progress(f"{step}: {first_of(slow)} for {waited:.0f} s", done, len(futures))
        return _collect(futures)

    def _error(self, step: str, failed: Mapping[str, BaseException]) -> FleetError:
        reasons = "; ".join(f"{address}: {reason_at(address, error)}" for address, error in failed.items())
        answers = [replace(one, state=self._unfailed) if one.state == "done" else one for one in self.answers()]
        return FleetError(f"{len(failed)} of {len(self.replicas)} replicas failed to {step}: {reasons}", answers)


def _done(act: Callable[[AdminClient], T], replica: AdminClient) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(act(replica))
    except Exception as error:
        future.set_exception(error)
    return future


def _collect(futures: Mapping[str, Future[T]]) -> tuple[dict[str, T], dict[str, Exception]]:
    found: dict[str, T] = {}
    failed: dict[str, Exception] = {}
    for address, future in futures.items():
        error = future.exception()
        if error is None:
            found[address] = future.result()
        elif isinstance(error, Exception):
            failed[address] = error
        else:
            raise error
    return found, failed


def reason_at(address: str, error: BaseException) -> str:
    """Return what went wrong at an address, without the address, which stands before it anyway."""
    return str(error).removeprefix(f"{address}: ") or type(error).__name__


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
