"""A client for Triton's other endpoints: model control, model configuration, statistics, and inference for checks.

Deployments, the launcher's watchdog and benchmarks share it. Texts are asked by `onetrunk.client.Client`.

Source: Triton's protocol extensions "Model Repository" (load, unload, index), "Model Configuration" and "Statistics".
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from pydantic import ValidationError
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from onetrunk.protocol.address import address_fault, stays_on_this_machine
from onetrunk.protocol.admin_key import AdminKey, check_admin_key
from onetrunk.protocol.api_key import AUTHORIZATION, check_api_key, without_header
from onetrunk.protocol.errors import NotReady, OneTrunkError, ServerError, TlsError, UserError
from onetrunk.protocol.names import (
    ADMIN_GRPC_HEADER,
    ADMIN_KEY_VARIABLE,
    CHECK_ID,
    DRIFT_METHOD,
    ENSEMBLE_VERSION,
    INPUT_IDS,
    TEXT,
    TEXT_PAIR,
    TRIALS_METHOD,
)
from onetrunk.protocol.tls import Tls, tls_fault
from onetrunk.protocol.traffic_split import TrialReport

# gRPC waits a second between two attempts to connect by default; a server that starts, or comes back, should be seen
# at once. The connections are this client's own: gRPC shares them between the clients of a process, and with them the
# pause after a refused one, so that another client that asks too early would make this one's first question fail.
CHANNEL_OPTIONS = [
    # A server is named by who asks, and often is this machine: it is not asked through the environment's http_proxy.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    # As large as Triton's own limit; gRPC's default of 4 MiB refuses large batches.
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
]
# Long, since gRPC cancels a request whose time runs out, and Triton 24.10 may not survive that (docs/triton.md).
TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 120.0
# A version that is unloaded answers what it was asked before it goes.
_SETTLE_TIMEOUT_S, _SETTLE_INTERVAL_S = 60.0, 0.05
_CHANGING = ("LOADING", "UNLOADING")
# Of what a command shows beside its own work.
_ASIDE_TIMEOUT_S = 2.0
_RELOAD_PARAMETER = "onetrunk_revived"

Row = tuple[str, str]
"""A text and its second text, which is empty if there is none."""

Answers = Mapping[str, NDArray[Any]]
"""Output -> array. *Shape:* (rows, ...)"""


class AdminClient:
    """A connection to a running Triton. Use it as a context manager, or close it.

    Every call raises NotReady if nobody answers in time, UserError if the admin key is missing or wrong, TlsError if
    client and server do not agree on TLS, and ServerError with Triton's reason if the server refuses.
    """

    def __init__(
        self,
        url: str,
        admin_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        tls: Tls | None = None,
        api_key: str | None = None,
        insecure: bool = False,
    ) -> None:
        """Prepare the connection, which is opened by the first call.

        Args:
            url: Host and port of the gRPC endpoint, or ``unix:`` and the path of its socket.
            admin_key: The key that the server's model-control endpoints ask for. It is sent with TLS, or to this
                machine only.
            timeout_s: The time of one call, except for loads and unloads. Choose a short one only if a server that
                does not answer in this time is to be given up anyway: see `TIMEOUT_S`.
            tls: The client's side of TLS; None connects without.
            api_key: The key for a server that asks for one. The admin key is enough by itself.
            insecure: Whether to send the key to another machine without TLS, where everybody on the way can read it.

        Raises:
            UserError: The url is no address, a key cannot be a header, or it would be sent in clear.
            TlsError: A file of `tls` cannot be used.
        """
        if (fault := address_fault(url)) is not None:
            raise UserError(f"--url {url}: {fault}")
        self.url = url
        self._timeout_s = timeout_s
        self._tls = tls
        if admin_key and tls is None and not insecure and not stays_on_this_machine(url):
            raise UserError(
                f"--url {url}: everybody between here and there could read the admin key: give --tls, or --insecure to "
                "send it in clear"
            )
        self._client = InferenceServerClient(
            url,
            creds=grpc.ssl_channel_credentials(*tls.read()) if tls is not None else None,
            channel_args=[*CHANNEL_OPTIONS, *(tls.channel_options if tls is not None else ())],
        )
        self._headers: dict[str, str] = {}
        self._key_fault = (
            f"no key was given: give --admin-key-file FILE, or set {ADMIN_KEY_VARIABLE}, with the key that it was "
            "started with"
        )
        if admin_key:
            whose = f"in {admin_key.source}" if isinstance(admin_key, AdminKey) else "that was given"
            self._key_fault = f"the key {whose} is not its key: give the one that it was started with"
            self._headers[ADMIN_GRPC_HEADER] = check_admin_key(admin_key, "admin_key")
        if api_key is not None:
            self._headers[AUTHORIZATION] = f"Bearer {check_api_key(api_key, 'api_key')}"
        self._ends: float | None = None

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextlib.contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Give all calls of the block some time together, in place of some time each. One thread may do so at a time.

        Args:
            seconds: The time, after which every call raises NotReady; None leaves each call its own.
        """
        self._ends = None if seconds is None else time.monotonic() + seconds
        try:
            yield
        finally:
            self._ends = None

    def version(self) -> str:
        """Return Triton's version."""
        with self._translate_errors("asking for its version"):
            return str(self._client.get_server_metadata(headers=self._headers, client_timeout=self._left_s()).version)

    def loaded_versions(self) -> dict[str, set[int]]:
        """Return model -> the versions that the server means to serve, also those whose process has died.

        Waits while models are being loaded or unloaded, which may be at somebody else's request: a deployment that was
        killed leaves the server busy with its last one.
        """
        end = time.monotonic() + _SETTLE_TIMEOUT_S
        index = self._index()
        while any(entry.get("state") in _CHANGING for entry in index) and time.monotonic() < end:
            time.sleep(_SETTLE_INTERVAL_S)
            index = self._index()
        return _ready_versions(index)

    def is_loaded(self, model: str, version: int) -> bool:
        """Return whether the server means to serve this version at this moment, even if its process has died."""
        return version in _ready_versions(self._index()).get(model, set())

    def running_models(self) -> set[str]:
        """Return the models that run, including those whose folder is gone from the repository."""
        return {entry.name for entry in self.statistics()}

    def statistics(self, model: str = "") -> list[Any]:
        """Return Triton's ``ModelStatistics`` of every loaded version, of one model or of all."""
        with self._translate_errors("asking for statistics"):
            found = self._client.get_inference_statistics(model, headers=self._headers, client_timeout=self._left_s())
        return list(found.model_stats)

    def config(self, model: str) -> pb.ModelConfig | None:
        """Return a loaded model's config as the server holds it, or None if it has no such model."""
        try:
            with self._translate_errors(f"asking for {model}'s config"):
                return self._client.get_model_config(model, headers=self._headers, client_timeout=self._left_s()).config
        except _NoSuchModelError:
            return None

    def load(self, model: str) -> None:
        """Load a model as its files say. Versions that are loaded already and stay are not touched.

        If it fails, the server keeps what it had.
        """
        self._load(model)

    def load_ensemble(self, ensemble: pb.ModelConfig) -> None:
        """Load an ensemble that is in no repository. Its parts must be loaded."""
        # A version needs a folder, and a folder needs a file.
        self._load(ensemble.name, config=_json(ensemble), files={f"file:{ENSEMBLE_VERSION}/.keep": b"-"})

    def reload(self, model: str, count: int) -> None:
        """Load a model again although its files are unchanged, so that it gets a new process.

        Triton ignores a request to load what it considers loaded. A config that comes with the request and differs in
        a parameter makes it load; nothing on disk is touched, so this works on a read-only repository. The next load
        without such a config reads the files again. The ensembles stay up meanwhile.

        Args:
            model: The model.
            count: A number that was not used for this model before.

        Raises:
            ServerError: The model is not loaded, or the server failed.
        """
        config = self.config(model)
        if config is None:
            raise ServerError(f"{self.url}: {model} is not loaded, so it cannot be loaded again")
        config.parameters[_RELOAD_PARAMETER].string_value = str(count)
        self._load(model, config=_json(config))

    def unload(self, model: str) -> None:
        """Unload a model. Requests in progress are answered first."""
        with self._translate_errors(f"unloading {model}"):
            self._client.unload_model(model, headers=self._headers, client_timeout=self._left_s(LOAD_TIMEOUT_S))

    def ask(self, ensemble: str, rows: Sequence[Row], outputs: Sequence[str]) -> Answers:
        """Send texts to an ensemble in one request.

        Args:
            ensemble: The ensemble.
            rows: The texts.
            outputs: The outputs to compute; an empty list asks for all.

        Returns:
            Output -> scores. *Shape:* (rows, outputs of the head)
        """
        inputs = {TEXT: text_column([text for text, _ in rows])}
        if any(pair for _, pair in rows):
            inputs[TEXT_PAIR] = text_column([pair for _, pair in rows])
        return self.infer(ensemble, inputs, outputs)

    def ask_tokens(self, ensemble: str, ids: NDArray[np.int64], outputs: Sequence[str]) -> Answers:
        """Send token ids to an ensemble in one request. See `ask`.

        Args:
            ensemble: The ensemble.
            ids: The token ids. *Shape:* (rows, tokens)
            outputs: The outputs to compute; an empty list asks for all.
        """
        return self.infer(ensemble, {INPUT_IDS: ids}, outputs)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        timeout_s: float | None = None,
    ) -> Answers:
        """Send one request to any model.

        Args:
            model: The model.
            inputs: Input -> array of numbers, or of bytes with dtype object. *Shape:* (rows, ...)
            outputs: The outputs to compute; none asks for all.
            timeout_s: The time of this call in place of the client's.
        """
        tensors = _tensors(inputs)
        wanted = [InferRequestedOutput(name) for name in outputs] or None
        with self._translate_errors(f"asking {model}"):
            answer = self._client.infer(
                model,
                tensors,
                outputs=wanted,
                request_id=CHECK_ID,
                headers=self._headers,
                client_timeout=self._left_s(timeout_s),
            )
        names = outputs or [output.name for output in answer.get_response().outputs]
        return {name: answer.as_numpy(name) for name in names}

    def infer_later(self, model: str, version: int, inputs: Mapping[str, NDArray[Any]]) -> Future[None]:
        """Send one request for all outputs of one version of a model, and do not wait for the answer.

        The request has no deadline, and nothing cancels it but the end of this connection.

        Args:
            model: The model.
            version: Its version.
            inputs: As for `infer`.

        Returns:
            What is done when the answer has come, with the error if it is one.
        """
        answer: Future[None] = Future()

        def settle(result: object, error: InferenceServerException | None) -> None:
            try:
                with self._translate_errors(f"asking {model}"):
                    if error is not None:
                        raise error
            except OneTrunkError as translated:
                answer.set_exception(translated)
            else:
                answer.set_result(None)

        self._client.async_infer(
            model,
            _tensors(inputs),
            settle,
            model_version=str(version),
            request_id=CHECK_ID,
            headers=self._headers,
        )
        return answer

    def wait_until_back(self, timeout_s: float) -> None:
        """Wait for a server that went away, such as one that its launcher starts again.

        Raises:
            NotReady: It did not come back in time.
        """
        end = min(time.monotonic() + timeout_s, self._ends or float("inf"))
        while True:
            try:
                self.loaded_versions()
            except NotReady:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.25)
            else:
                return

    def drifts(self) -> dict[str, Any]:
        """Return task -> how far its answers of late are from those on the dev data, as the front's ``/v1/tasks`` says.

        A server that does not answer, or a Triton without a front, is no error: then nothing is known of any task.
        """
        return self._told_by_front(DRIFT_METHOD)

    def trials(self) -> dict[str, Any]:
        """Return task -> how its candidate does that answers a share of its traffic, as the front tells it.

        A server that does not answer, or a Triton without a front, is no error: then nothing is known of any task. The
        fields are those of `onetrunk.protocol.traffic_split.TrialReport`; what is none of these is left out.
        """
        found = {}
        for task, told in self._told_by_front(TRIALS_METHOD).items():
            with contextlib.suppress(ValidationError):
                found[task] = TrialReport.model_validate(told).model_dump()
        return found

    def _told_by_front(self, method: str) -> dict[str, Any]:
        options = [*CHANNEL_OPTIONS, *(self._tls.channel_options if self._tls is not None else ())]
        if self._tls is not None:
            channel = grpc.secure_channel(self.url, grpc.ssl_channel_credentials(*self._tls.read()), options)
        else:
            channel = grpc.insecure_channel(self.url, options)
        with channel:
            try:
                answer = channel.unary_unary(method)(
                    b"", timeout=_ASIDE_TIMEOUT_S, metadata=tuple(self._headers.items())
                )
                found = json.loads(answer)
            except (grpc.RpcError, ValueError, RecursionError):
                return {}
        return found if isinstance(found, dict) else {}

    def _left_s(self, most_s: float | None = None) -> float:
        """Return the time of a call: at most so much, by default the client's, and no more than `within` has left."""
        most_s = self._timeout_s if most_s is None else most_s
        if self._ends is None:
            return most_s
        left = self._ends - time.monotonic()
        if left <= 0:
            raise NotReady(f"{self.url}: did not answer within its time")
        return min(most_s, left)

    def _index(self) -> list[Any]:
        with self._translate_errors("asking what is loaded"):
            index = self._client.get_model_repository_index(
                headers=self._headers, as_json=True, client_timeout=self._left_s()
            )
        return list(index.get("models", []))

    def _load(self, model: str, **overrides: Any) -> None:
        with self._translate_errors(f"loading {model}"):
            self._client.load_model(
                model, headers=self._headers, client_timeout=self._left_s(LOAD_TIMEOUT_S), **overrides
            )

    @contextlib.contextmanager
    def _translate_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            message = " ".join((error.message() or str(error)).split())[:400]
            if "restricted" in message and "header" in message:
                raise UserError(
                    f"{self.url}: the server keeps its model-control endpoints locked, and {self._key_fault}"
                ) from error
            if "unknown model" in message or "is not found" in message:
                raise _NoSuchModelError(f"{self.url}: {doing}: {message}") from error
            status = str(error.status()).removeprefix("StatusCode.")
            if status == "UNAVAILABLE" and (fault := tls_fault(self.url, self._tls, message)) is not None:
                raise TlsError(fault) from error
            if status == "UNAUTHENTICATED" and AUTHORIZATION not in self._headers:
                # The admin key is enough by itself.
                message = f"{without_header(message)}, and {self._key_fault}"
            if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise NotReady(
                    f"{self.url}: no answer while {doing} ({message}): is the server running, and --url right?"
                ) from error
            raise ServerError(f"{self.url}: {doing} failed: {message}", status=status) from error


class _NoSuchModelError(ServerError):
    """The server does not know the model."""


def _tensors(inputs: Mapping[str, NDArray[Any]]) -> list[InferInput]:
    found = []
    for name, values in inputs.items():
        tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        found.append(tensor.set_data_from_numpy(values))
    return found


def _ready_versions(index: Sequence[Any]) -> dict[str, set[int]]:
    """Return model -> versions of a server's index.

    Raises:
        ServerError: It is no index.
    """
    found: dict[str, set[int]] = {}
    try:
        for entry in index:
            if entry.get("state") == "READY":
                found.setdefault(entry["name"], set()).add(int(entry["version"]))
    except (AttributeError, KeyError, ValueError) as error:
        raise ServerError(f"the server's list of models cannot be read ({error!r:.100}): is it a Triton?") from None
    return found


def _json(config: pb.ModelConfig) -> str:
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def text_column(texts: Sequence[str]) -> NDArray[np.object_]:
    """Return texts as an input of strings. *Shape:* (texts, 1)."""
    return np.array([[text.encode()] for text in texts], dtype=np.object_)
