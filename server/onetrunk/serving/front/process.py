"""Runs a front: both doors in one event loop, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from onetrunk.protocol.address import family_of
from onetrunk.serving.front.connection import Connection
from onetrunk.serving.front.drift import DriftMonitor
from onetrunk.serving.front.endpoints import json_routes
from onetrunk.serving.front.follower import Follower
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.grpc_door import open_grpc_door
from onetrunk.serving.front.http_door import HttpDoor
from onetrunk.serving.front.metrics import Metrics
from onetrunk.serving.front.observer import Observer
from onetrunk.serving.front.page import Page
from onetrunk.serving.front.sample import Sample
from onetrunk.serving.front.service import Service
from onetrunk.serving.front.settings import MULTIPROCESS_FOLDER, FrontSettings, port_taken
from onetrunk.serving.front.tracer import Tracer
from onetrunk.serving.front.trials import Trials
from onetrunk.serving.front.triton import Triton

log = logging.getLogger("onetrunk.serving.front")

# The time for requests in flight when the front stops.
STOP_GRACE_S = 5.0
# Short, so that there is never much to count at once, for which requests would wait.
COUNT_EVERY_S = 0.5


class _Server(uvicorn.Server):
    """uvicorn's server, without its handlers of signals: this process has two servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    """Both doors of a front."""

    def __init__(self, settings: FrontSettings, triton: Triton) -> None:
        """Prepare the doors. Call this inside the event loop."""
        self._settings = settings
        self._triton = triton
        self._gateway = Gateway(settings, triton)
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self._grpc: Any = None
        self._background: list[asyncio.Task[None]] = []
        self._tracer: Tracer | None = None
        self._sample: Sample | None = None

    async def open(self) -> None:
        """Listen on the three ports.

        Raises:
            OSError: A port is in use; the message names it.
            UserError: Tracing is wanted, and its packages are not installed.
        """
        settings = self._settings
        self._tracer = Tracer(settings.tracing) if settings.tracing is not None else None
        observer = Observer(Metrics(self._gateway.admission), self._tracer, verbose=settings.verbose)
        if settings.sample is not None:
            self._sample = Sample(settings.sample)
            self._background.append(asyncio.create_task(self._sample.keep()))
        folder = os.environ.get(MULTIPROCESS_FOLDER)
        trials = Trials(self._gateway, observer.metrics, Path(folder) if folder is not None else None)
        service = Service(self._gateway, observer, trials, self._sample)
        routes = [*json_routes(service), *Page(service, settings.repository).routes()]
        door = HttpDoor(self._gateway, observer, routes)
        sockets = [_listen(settings, settings.http_port), _listen(settings, settings.metrics_port)]
        self._grpc = open_grpc_door(self._gateway, observer, trials)
        await self._grpc.start()
        self._background += [
            asyncio.create_task(self._gateway.remember_tasks()),
            asyncio.create_task(self._count_answers(observer.drift)),
        ]
        if settings.repository is not None:
            follower = Follower.of(self._gateway, settings.repository, settings.verify_key)
            self._background.append(asyncio.create_task(follower.run()))
        for listener, app in zip(sockets, (door.app(), door.metrics_app()), strict=True):
            server = _Server(self._config(app))
            task = asyncio.create_task(server.serve([listener]))
            self._servers.append((server, task))
        while not all(server.started for server, _ in self._servers):
            if any(task.done() for _, task in self._servers):
                raise OSError("the HTTP server did not start")
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Answer what is in flight, within a grace, and stop listening."""
        for server, _ in self._servers:
            server.should_exit = True
        if self._grpc is not None:
            await self._grpc.stop(STOP_GRACE_S)
        for _, task in self._servers:
            await task
        for task in self._background:
            task.cancel()
        if self._sample is not None:
            await self._sample.write_aside()
        await self._triton.close(STOP_GRACE_S)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _count_answers(self, drift: DriftMonitor) -> None:
        """Count the answers of late again and again, for ever."""
        while True:
            await asyncio.sleep(COUNT_EVERY_S)
            try:
                drift.count(self._gateway.last_tasks)
            except Exception:
                log.exception("answers were not counted; the next ones will be")

    def _config(self, app: Any) -> uvicorn.Config:
        tls = self._settings.tls
        return uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=self._settings.limits.max_connections,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=int(STOP_GRACE_S),
            ssl_certfile=str(tls.cert) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
            ssl_cert_reqs=2 if tls and tls.client_ca else 0,
        )


def _listen(settings: FrontSettings, port: int) -> socket.socket:
    listener = socket.socket(family_of(settings.host), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.share_ports:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.host, port))
        listener.listen(2048)  # as uvicorn does: so that a taken port is noticed now
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise port_taken(port) from None
        raise
    return listener
