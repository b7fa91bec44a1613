"""`Server`: a Triton that serves a repository behind a front, from start to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from pydantic import SecretStr

from onetrunk.admin import AdminClient
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import OneTrunkError, ServerError
from onetrunk.protocol.signature import Verifier
from onetrunk.serving import guard
from onetrunk.serving.causes import full_disks
from onetrunk.serving.command import Address, PortTakenError, choose_ports, resolve_host, triton_command
from onetrunk.serving.front.sample import check_sample
from onetrunk.serving.front.settings import FrontSettings, Limits, Sampling, ServerTls, Tracing
from onetrunk.serving.front_process import FrontKeeper
from onetrunk.serving.installation import environment, find_triton, make_runtime
from onetrunk.serving.log import failure_reason, loaded_models
from onetrunk.serving.log_file import LogFile
from onetrunk.serving.open_files import allow_open_files
from onetrunk.serving.probes import probe_all_outputs
from onetrunk.serving.process import TritonProcess
from onetrunk.serving.repository import Repository, read_repository
from onetrunk.serving.shared_memory import check_room, close_to_others
from onetrunk.serving.stubs import stub_processes
from onetrunk.serving.watchdog import Watchdog
from onetrunk.serving.watched import Watched

log = logging.getLogger(__name__)

POLL_S = 0.05
# Short: a Triton that does not answer such questions in this time is stuck, and will be restarted.
ADMIN_TIMEOUT_S = 5.0
# A free port can be lost to another process before the front listens on it.
TRIES_FOR_FREE_PORTS = 5


class _StoppedError(ServerError):
    """The server was stopped on purpose while another thread waited for it."""


class Server:
    """A Triton that serves a repository, with a watchdog.

    As a context manager, it has answered for every task when the block begins, and nothing of it is left when the block
    ends::

        with Server("model_repository", http_port=0, grpc_port=0, metrics_port=0) as server:
            client = InferenceServerClient(server.grpc_url)
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        http_port: int | None = 8000,
        grpc_port: int | None = 8001,
        metrics_port: int | None = 8002,
        log_path: str | os.PathLike[str] | None = None,
        admin_key: str | None = None,
        api_keys: Sequence[str] = (),
        limits: Limits | None = None,
        tls: ServerTls | None = None,
        tracing: Tracing | None = None,
        sample: Sampling | None = None,
        front_workers: int = 1,
        verbose: bool = False,
        verify: bool = True,
        verify_key: Path | None = None,
        start_timeout_s: float = 120.0,
        probe_interval_s: float | None = 4.0,
    ) -> None:
        """Prepare the server without starting it.

        Args:
            repository: The repository, as `build-repo` wrote it.
            host: The address or host name to listen on.
            http_port: The port for HTTP; 0 or None for a free one, also for the other two ports.
            grpc_port: The port for gRPC.
            metrics_port: The port for Prometheus.
            log_path: The file to which Triton's log is appended. By default it is a temporary file, which is kept only
                after a failure.
            admin_key: The key that loading models and other changes ask for, in the header `onetrunk-admin-key`. By
                default these endpoints are closed to everybody.
            api_keys: The keys of which every client needs one; without any, whoever reaches the front may ask.
            limits: What the front accepts; None for the defaults.
            tls: The front's certificate; None for plain connections.
            tracing: Where front and Triton send traces; None for nowhere.
            sample: Where the front keeps texts for labelling; None keeps none.
            front_workers: The number of the front's processes. One keeps up with some hundred requests a second.
            verbose: Whether Triton and the front log every request.
            verify: Whether all files must be as the repository's manifest says before the server starts.
            verify_key: The file of the public key by which the manifest must be signed; None for no signature.
            start_timeout_s: The time until the first answer.
            probe_interval_s: The seconds for which a model may answer nobody before it is asked whether it still does;
                None for no such questions. A model that hangs is noticed within these seconds and five more.

        Raises:
            UserError: The host is unknown, or the key cannot be used.
        """
        self._path = Path(repository).absolute()
        self._wanted = Address(resolve_host(host), http_port or 0, grpc_port or 0, metrics_port or 0)
        self._address = self._wanted
        self._settings = FrontSettings(
            **asdict(self._wanted),
            admin_key=SecretStr(admin_key) if admin_key else None,
            api_keys=tuple(SecretStr(key) for key in api_keys),
            tls=tls,
            limits=limits or Limits(),
            repository=self._path,
            verify_key=None if verify_key is None else Path(verify_key).absolute(),
            tracing=tracing,
            sample=sample,
            verbose=verbose,
        )
        self._front_workers = front_workers
        self._verify = verify
        self._verifier = None if verify_key is None else Verifier(verify_key)
        self._start_timeout_s = start_timeout_s
        self._probe_interval_s = probe_interval_s
        self._log = LogFile(log_path)
        self._repository: Repository | None = None
        self._front: FrontKeeper | None = None
        self._running: Watched | None = None
        self._watchdog: Watchdog | None = None
        self._lock = threading.Lock()  # held while a process is started or ended
        self._waiting_for_answer = threading.Lock()  # held by the thread that waits for the first answer
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._failure: OneTrunkError | None = None

    @property
    def grpc_url(self) -> str:
        """The gRPC endpoint as this machine reaches it: `host:port`."""
        return self._address.reach(self._address.grpc_port)

    @property
    def http_url(self) -> str:
        """The HTTP endpoint as this machine reaches it: `host:port`."""
        return self._address.reach(self._address.http_port)

    @property
    def triton_url(self) -> str:
        """Triton's own gRPC endpoint, which only this user reaches. It changes when Triton is restarted.

        Raises:
            ServerError: Triton does not run.
        """
        running = self._running
        if running is None:
            raise ServerError("Triton does not run at the moment")
        return running.sockets.grpc

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics for Prometheus."""
        scheme = "https" if self._settings.tls is not None else "http"
        return f"{scheme}://{self._address.reach(self._address.metrics_port)}/metrics"

    @property
    def log_path(self) -> Path:
        """The file of Triton's log.

        Raises:
            ServerError: The server was not started.
        """
        return self._log.path

    @property
    def front_log_path(self) -> Path:
        """The file of the front's log, beside Triton's.

        Raises:
            ServerError: The server was not started.
        """
        return self._log.front_path

    @property
    def front_pid(self) -> int | None:
        """The process id of the front, or of its first worker; None while there is none. See `front_pids`."""
        return next(iter(self.front_pids), None)

    @property
    def front_pids(self) -> list[int]:
        """The process ids of the front, which change when one is replaced."""
        return self._front.pids if self._front is not None else []

    @property
    def repository(self) -> Path:
        """The repository's folder."""
        return self._path

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """Task -> its description in the ensembles; empty before the start."""
        return self._repository.tasks if self._repository is not None else {}

    @property
    def pid(self) -> int | None:
        """Triton's process id. It changes with a restart, and is None while no process runs."""
        running = self._running
        return running.process.pid if running is not None else None

    def __enter__(self) -> Server:
        """Start the server and wait until it answers."""
        self.start()
        self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Check the repository and the ports, and start Triton without waiting for it.

        Raises:
            UserError: The repository is incomplete, Triton is not installed, /dev/shm is too small for a full batch of
                the longest texts, too few files may be open, or the log, the private folder or the file for a sample
                cannot be written.
            PortTakenError: A port is in use.
        """
        allow_open_files(self._settings.limits.max_connections)
        self._repository = read_repository(self._path, verify=self._verify, verifier=self._verifier)
        warning = check_room(self._repository.configs, self._repository.max_length)
        if warning is not None:
            log.warning("%s", warning)
        choose_ports(self._wanted)  # which fails before anything is written
        find_triton()
        if self._settings.sample is not None:
            check_sample(self._settings.sample.path)
        self._log.open()
        try:
            self._open_front()
            self._launch()
        except BaseException as error:
            self._failure = error if isinstance(error, OneTrunkError) and not isinstance(error, _StoppedError) else None
            self.stop()
            raise

    def wait_ready(self, timeout_s: float | None = None, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Wait until all outputs of both ensembles are answered with finite numbers, then start to watch.

        The first request is a full batch of the longest texts.

        Args:
            timeout_s: The longest time to wait; by default `start_timeout_s`.
            on_progress: Called with the number of models that are loaded, and the number of all.

        Raises:
            ServerError: The server was not started, or does not answer. The message has Triton's own reason, and
                nothing of the server is left.
        """
        with self._waiting_for_answer:
            if self._watchdog is None:
                self._check_started()
                self._wait_for_answer(timeout_s, on_progress)

    def wait(self) -> None:
        """Wait until the server is stopped. A server that has not answered yet is waited for first: see `wait_ready`.

        Raises:
            ServerError: The server was not started, or did not answer at its start. Later it is restarted as often as
                it takes.
        """
        if not self._ended.is_set():
            with contextlib.suppress(_StoppedError):
                self.wait_ready()  # without its watchdog nobody would notice that the server has died
            self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop the server and remove what is left of it: processes, shared memory, folder. May be called twice."""
        self._stopping.set()
        if self._watchdog is not None:
            self._watchdog.stop()
        with self._lock:
            running, self._running = self._running, None
            if self._front is not None:
                self._front.stop()
            if running is not None:
                running.process.stop()
                running.admin.close()
        if self._watchdog is not None:
            self._watchdog.join()
        self._log.leave(failed=self._failure is not None)
        self._ended.set()

    def _check_started(self) -> None:
        """Refuse to wait for a server that has no process. That is no failure of the server, which can still start."""
        if self._running is None:
            if self._stopping.is_set():
                raise self._failure or _StoppedError("the server was stopped")
            raise ServerError("the server was not started")

    def _wait_for_answer(self, timeout_s: float | None, on_progress: Callable[[int, int], None] | None) -> None:
        deadline = time.monotonic() + (timeout_s if timeout_s is not None else self._start_timeout_s)
        max_length = self._repository.max_length if self._repository is not None else 0
        try:
            watched = self._await_answer(deadline, on_progress, full_batch_tokens=max_length)
        except BaseException as error:
            self._failure = error if isinstance(error, OneTrunkError) and not isinstance(error, _StoppedError) else None
            self.stop()
            raise
        self._watchdog = Watchdog(
            watched, self._restart, max_length=max_length, probe_interval_s=self._probe_interval_s
        )
        self._watchdog.start()

    def _open_front(self) -> None:
        """Start the front. A port that nobody named may be lost meanwhile: then another is chosen."""
        for tries_left in reversed(range(TRIES_FOR_FREE_PORTS)):
            self._address = choose_ports(self._wanted)
            settings = self._settings.model_copy(update=asdict(self._address))
            try:
                self._front = FrontKeeper(settings, self.front_log_path, self._front_workers)
                return
            except PortTakenError:
                if not tries_left or self._address == self._wanted:
                    raise

    def _launch(self) -> Watched:
        """Start a Triton in place of the one that runs, if any."""
        installation = find_triton()
        with self._lock:
            if self._running is not None:
                self._front_moves(None)
                self._running.process.stop()
                self._running.admin.close()
                self._running = None
            if self._stopping.is_set():
                raise _StoppedError("the server was stopped")
            logged = self._log.since_now()
            runtime = make_runtime(installation)
            told = self._settings
            command = triton_command(installation, runtime, self._path, verbose=told.verbose, tracing=told.tracing)
            try:
                process = TritonProcess(command, environment(installation, runtime, os.environ), runtime, self.log_path)
            except OSError as error:
                guard.clear(runtime.shm_prefix, str(runtime.folder))
                raise ServerError(f"Triton cannot be started: {error}") from None
            admin = AdminClient(runtime.sockets.grpc, timeout_s=ADMIN_TIMEOUT_S)
            self._running = Watched(process, admin, runtime.sockets, logged=logged.tail, log_path=self.log_path)
            return self._running

    def _await_answer(
        self,
        deadline: float,
        on_progress: Callable[[int, int], None] | None = None,
        full_batch_tokens: int | None = None,
    ) -> Watched:
        """Wait for the first answers of the Triton that was launched last."""
        running = self._running
        if running is None or self._repository is None:
            raise _StoppedError("the server was stopped while it was starting")
        models = self._repository.models
        while True:
            if (status := running.process.exit_status()) is not None:
                raise self._start_failure(running, status)
            if running.sockets.is_open():
                # Before the first text of a client passes through them.
                close_to_others(found.region for found in stub_processes(running.process.pid))
                probe_all_outputs(running.admin, max(deadline - time.monotonic(), 1.0), full_batch_tokens)
                self._front_moves(running.sockets.folder)
                return running
            if on_progress is not None:
                on_progress(len(loaded_models(self._log.latest()) & models), len(models))
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(models - loaded_models(self._log.latest()))) or "an answer"
                raise ServerError(f"Triton is not ready in time; still missing: {missing} (log: {self.log_path})")
            if self._stopping.wait(POLL_S):
                raise _StoppedError("the server was stopped while it was starting")

    def _front_moves(self, folder: Path | None) -> None:
        if self._front is not None:
            self._front.move(folder)

    def _start_failure(self, running: Watched, status: int) -> ServerError:
        """Return an error with Triton's own reason for not starting."""
        reason = failure_reason(self._log.latest())
        if reason is None or full_disks([self.log_path]):
            reason = f"Triton ended: {running.death_cause(status)}"
        return ServerError(f"{reason} (log: {self.log_path})")

    def _restart(self) -> Watched:
        self._launch()
        return self._await_answer(time.monotonic() + self._start_timeout_s)
