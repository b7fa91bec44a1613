"""The closed loop that every system of a comparison is measured by: the same texts, over HTTP, as JSON.

perf_analyzer speaks to Triton only and asks for all outputs of a model, so it cannot measure a peer, nor a subset of
the tasks. This generator sends prepared bytes over kept connections and reads the answers: it takes about a
twentieth of a millisecond of the machine a request, the same for all.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.peers.peer import HttpRequest
from onetrunk.protocol.errors import ServerError

# No request of a comparison takes this long on a server that is well.
TIMEOUT_S = 120.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Load:
    """What the clients saw.

    Attributes:
        throughput: texts answered a second, for all the tasks that were asked for.
        p50_ms: half of the texts were answered within this time.
        p99_ms: 99 in 100 were.
        texts: how many were answered.
    """

    throughput: float
    p50_ms: float
    p99_ms: float
    texts: int


class Connection:
    """A kept HTTP/1.1 connection."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
        # A request in two packets would otherwise wait for the acknowledgement of the first.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""

    def send(self, request: HttpRequest) -> None:
        """Sends one request; its answer is to be read before the next."""
        head = (
            f"POST {request.path} HTTP/1.1\r\nHost: {self._address[0]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(request.body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + request.body)

    def receive(self) -> bytes:
        """The answer's body.

        Raises:
            ServerError: its status is not 200, or the connection broke.
        """
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._read = self._read[:end], self._read[end + 4 :]
        status = head.split(b" ", 2)[1]
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        body = self._chunked() if b"transfer-encoding" in fields else self._exactly(int(fields[b"content-length"]))
        if status != b"200":
            raise ServerError(f"{self._address[0]}:{self._address[1]}: status {status.decode()}: {body[:500]!r}")
        return body

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _more(self) -> None:
        chunk = self._socket.recv(_CHUNK)
        if not chunk:
            raise ServerError(f"{self._address[0]}:{self._address[1]}: closed the connection")
        self._read += chunk

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            self._more()
        body, self._read = self._read[:size], self._read[size:]
        return body

    def _chunked(self) -> bytes:
        body = b""
        while True:
            while (end := self._read.find(b"\r\n")) < 0:
                self._more()
            size = int(self._read[:end].split(b";")[0], 16)
            self._read = self._read[end + 2 :]
            body += self._exactly(size)
            self._exactly(2)
            if not size:
                return body


def ask(host: str, port: int, requests: Sequence[HttpRequest]) -> list[bytes]:
    """The answers to the requests of one text, sent at the same time."""
    connections = [Connection(host, port) for _ in requests]
    try:
        return _ask(connections, requests)
    finally:
        for connection in connections:
            connection.close()


def run_load(host: str, port: int, texts: Sequence[Sequence[HttpRequest]], concurrency: int, seconds: float) -> Load:
    """Sends the texts round and round, ``concurrency`` at a time, for about ``seconds``.

    Args:
        host: the server's.
        port: its HTTP port.
        texts: for each text the requests that answer it. Several are sent at the same time, each over its own
            connection, and the text counts as answered when the last of them is.
        concurrency: how many texts are on their way at a time.
        seconds: how long. A text that is on its way at the end is waited for and counts, and so does its time.

    Raises:
        ServerError: a request failed.
    """
    clients = [_LoadClient(host, port, texts, start) for start in range(concurrency)]
    begin = time.perf_counter()
    until = begin + seconds
    threads = [threading.Thread(target=client.run, args=(until,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - begin
    for client in clients:
        if client.error is not None:
            raise client.error
    times = sorted(itertools.chain.from_iterable(client.times for client in clients))
    return Load(
        throughput=len(times) / taken,
        p50_ms=1e3 * times[len(times) // 2],
        p99_ms=1e3 * times[min(len(times) - 1, len(times) * 99 // 100)],
        texts=len(times),
    )


class _LoadClient:
    """One of the clients of a closed loop: it sends a text when the one before is answered."""

    def __init__(self, host: str, port: int, texts: Sequence[Sequence[HttpRequest]], start: int) -> None:
        most = max(len(requests) for requests in texts)
        self._connections = [Connection(host, port) for _ in range(most)]
        # Clients begin at different texts, so that they do not send the same one at the same time.
        step = max(1, len(texts) // 7)
        self._texts: Iterator[Sequence[HttpRequest]] = itertools.islice(itertools.cycle(texts), start * step, None)
        self.times: list[float] = []
        self.error: Exception | None = None

    def run(self, until: float) -> None:
        """Asks until that time of time.perf_counter."""
        try:
            while (begin := time.perf_counter()) < until:
                _ask(self._connections, next(self._texts))
                self.times.append(time.perf_counter() - begin)
        except (ServerError, OSError) as error:
            self.error = error if isinstance(error, ServerError) else ServerError(f"the connection broke: {error}")
        finally:
            for connection in self._connections:
                connection.close()


def _ask(connections: Sequence[Connection], requests: Sequence[HttpRequest]) -> list[bytes]:
    pairs = list(zip(connections, requests, strict=False))
    for connection, request in pairs:
        connection.send(request)
    return [connection.receive() for connection, _ in pairs]
