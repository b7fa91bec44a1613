"""A running Triton, through its model-control API: the same calls for a server here and for one elsewhere.

Source: Triton's protocol extensions "Model Repository" (load, unload, index) and "Model Configuration".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_KEY_VARIABLE, ENSEMBLE_VERSION

# gRPC waits a second between two tries to connect by default; a server that comes back should be seen at once.
_CHANNEL = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]
# Long, since a request whose time runs out is cancelled, which Triton 24.10 may not survive (docs/triton.md).
_ASK_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 120.0
# A version that is unloaded answers what it was asked before it goes.
_SETTLE_TIMEOUT_S, _SETTLE_INTERVAL_S = 60.0, 0.05
_IN_BETWEEN = ("LOADING", "UNLOADING")

Row = tuple[str, str]
"""A text and its second text; an empty one where there is none."""

Answers = Mapping[str, NDArray[np.float32]]
"""Output -> scores. *Shape:* (rows, outputs of the head)"""


class ServerGoneError(OneTrunkError):
    """Nobody answers at the server's address."""


class LiveServer:
    """A running server. Use as a context manager, or close it."""

    def __init__(self, url: str, admin_key: str | None = None) -> None:
        """Connects when it is first asked.

        Args:
            url: host and port of its gRPC endpoint.
            admin_key: what its model-control endpoints ask for.

        Raises:
            UserError: the url names a protocol.
        """
        if "://" in url:
            raise UserError(f"--url {url}: give host and port of the gRPC endpoint, as in 127.0.0.1:8001")
        self.url = url
        self._client = InferenceServerClient(url, channel_args=_CHANNEL)
        self._headers = {ADMIN_GRPC_HEADER: admin_key} if admin_key else None

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._client.close()

    def loaded_versions(self) -> dict[str, set[int]]:
        """Model -> the versions that the server means to serve, once it is done with what it is loading and unloading.

        It may be at that for somebody else: a deployer that was killed leaves the server at its last order.

        Raises:
            ServerGoneError: nobody answers.
            UserError: the admin key is missing or wrong.
        """
        until, index = time.monotonic() + _SETTLE_TIMEOUT_S, self._index()
        while any(entry.get("state") in _IN_BETWEEN for entry in index) and time.monotonic() < until:
            time.sleep(_SETTLE_INTERVAL_S)
            index = self._index()
        found: dict[str, set[int]] = {}
        for entry in index:
            if entry.get("state") == "READY":
                found.setdefault(entry["name"], set()).add(int(entry["version"]))
        return found

    def _index(self) -> list[dict[str, str]]:
        with self._told("asking what is loaded"):
            index = self._client.get_model_repository_index(
                headers=self._headers, as_json=True, client_timeout=_ASK_TIMEOUT_S
            )
        return list(index.get("models", []))

    def running_models(self) -> set[str]:
        """The models that run, those whose folder is gone too."""
        with self._told("asking what runs"):
            found = self._client.get_inference_statistics(as_json=True, client_timeout=_ASK_TIMEOUT_S)
        return {entry["name"] for entry in found.get("model_stats", [])}

    def config(self, model: str) -> pb.ModelConfig | None:
        """A loaded model's config as the server holds it; None where it has no such model."""
        try:
            with self._told(f"asking for {model}'s config"):
                return self._client.get_model_config(model, client_timeout=_ASK_TIMEOUT_S).config
        except _NoSuchModelError:
            return None

    def load(self, model: str) -> None:
        """Loads a model as its files say; versions that it holds already and that stay are not touched.

        Raises:
            OneTrunkError: the server cannot; the message has its reason. It then keeps what it had.
        """
        with self._told(f"loading {model}"):
            self._client.load_model(model, headers=self._headers, client_timeout=_LOAD_TIMEOUT_S)

    def load_aside(self, ensemble: pb.ModelConfig) -> None:
        """Loads an ensemble that is in no repository. Its parts must be loaded. Errors as for ``load``."""
        config = json_format.MessageToJson(ensemble, preserving_proto_field_name=True)
        # A version needs a folder, and a folder a file.
        files = {f"file:{ENSEMBLE_VERSION}/.keep": b"-"}
        with self._told(f"loading {ensemble.name}"):
            self._client.load_model(
                ensemble.name, headers=self._headers, config=config, files=files, client_timeout=_LOAD_TIMEOUT_S
            )

    def unload(self, model: str) -> None:
        """Unloads a model. Requests that it is answering are answered first."""
        with self._told(f"unloading {model}"):
            self._client.unload_model(model, headers=self._headers, client_timeout=_LOAD_TIMEOUT_S)

    def ask(self, ensemble: str, rows: Sequence[Row], outputs: Sequence[str]) -> Answers:
        """Asks an ensemble of texts for these outputs, in one request.

        Raises:
            OneTrunkError: no answer.
        """
        inputs = [_texts("text", [text for text, _ in rows])]
        if any(pair for _, pair in rows):
            inputs.append(_texts("text_pair", [pair for _, pair in rows]))
        return self._infer(ensemble, inputs, outputs)

    def ask_tokens(self, ensemble: str, ids: NDArray[np.int64], outputs: Sequence[str]) -> Answers:
        """The same of token ids.

        Args:
            ensemble: the ensemble.
            ids: token ids. *Shape:* (rows, tokens)
            outputs: which outputs.

        Raises:
            OneTrunkError: no answer.
        """
        tensor = InferInput("input_ids", list(ids.shape), "INT64")
        tensor.set_data_from_numpy(ids)
        return self._infer(ensemble, [tensor], outputs)

    def wait_until_back(self, timeout_s: float) -> None:
        """Waits for a server that went away, as one that its launcher starts anew.

        Raises:
            ServerGoneError: it did not come back in time.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                self.loaded_versions()
            except ServerGoneError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.25)
            else:
                return

    def _infer(self, ensemble: str, inputs: list[InferInput], outputs: Sequence[str]) -> Answers:
        wanted = [InferRequestedOutput(name) for name in outputs]
        with self._told(f"asking {ensemble}"):
            answer = self._client.infer(ensemble, inputs, outputs=wanted, client_timeout=_ASK_TIMEOUT_S)
        return {name: answer.as_numpy(name) for name in outputs}

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns Triton's errors into ours."""
        try:
            yield
        except InferenceServerException as error:
            message = (error.message() or str(error)).strip()
            if "restricted" in message and "header" in message:
                raise UserError(
                    f"{self.url}: the server keeps its model-control endpoints locked, and "
                    f"{'the key given is not its' if self._headers else 'no key was given'}: set "
                    f"{ADMIN_KEY_VARIABLE} to the key that it was started with"
                ) from error
            if "unknown model" in message or "is not found" in message:
                raise _NoSuchModelError(f"{self.url}: {what}: {message}") from error
            if error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"):
                raise ServerGoneError(
                    f"{self.url}: no answer while {what} ({_first_line(message)}): "
                    "is the server running, and --url right?"
                ) from error
            raise OneTrunkError(f"{self.url}: {what} failed: {_first_line(message)}") from error


class _NoSuchModelError(OneTrunkError):
    """The server does not know the model."""


def _first_line(message: str) -> str:
    return " ".join(message.split())[:400]


def _texts(name: str, texts: Sequence[str]) -> InferInput:
    tensor = InferInput(name, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    return tensor
