"""Calls in the form of transformers' pipelines, answered by a server over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onetrunk.client.core import check_timeout
from onetrunk.protocol.api_key import check_api_key, without_header
from onetrunk.protocol.errors import (
    BadInput,
    DeadlineExceeded,
    KeyRefused,
    NotReady,
    OneTrunkError,
    ServerError,
    TlsError,
    UnknownTask,
    UserError,
)
from onetrunk.protocol.redirects import NoRedirect
from onetrunk.protocol.tls import Tls

_KINDS = {
    "text-classification": ("classification", "multilabel", "regression"),
    "sentiment-analysis": ("classification", "multilabel", "regression"),
    "token-classification": ("tagging",),
    "ner": ("tagging",),
}
"""Name of a pipeline -> the kinds of task that answer it."""

# Far more than the answers to so many texts.
_MAX_ANSWER_BYTES = 2**28
_MAX_ERROR_BYTES = 2**16
# Texts of one request. The front takes 1,024, and 8 MiB.
_TEXTS_AT_ONCE = 256
_DEFAULT: Any = object()

Inputs = str | Mapping[str, str] | Sequence[str | Mapping[str, str]]


def pipeline(
    task: str,
    url: str = "http://127.0.0.1:8000",
    *,
    model: str | None = None,
    timeout_s: float = 30.0,
    tls: Tls | None = None,
    api_key: str | None = None,
) -> TextClassificationPipeline | TokenClassificationPipeline:
    """Return a pipeline whose model is a head on a server.

    Args:
        task: ``text-classification`` (or ``sentiment-analysis``) or ``token-classification`` (or ``ner``).
        url: The front's address for HTTP.
        model: The task that is served; None if there is only one that answers such a pipeline.
        timeout_s: The seconds of one request. A long list of texts is several.
        tls: The client's side of TLS, for an address with ``https``; None trusts the system's authorities.
        api_key: The key for a server that asks for one. Without TLS, it can be read on its way.

    Raises:
        BadInput: There is no such pipeline; no model is named, and there is not exactly one; or an argument is wrong.
        UnknownTask: The task is not served, or answers another pipeline.
        NotReady: No server answers, or it is busy.
        DeadlineExceeded: The server did not answer in time.
        TlsError: Client and server do not agree on TLS, or a file of `tls` cannot be used.
        ServerError: The server failed.

    Example:
        >>> classify = pipeline("text-classification", model="sst2")  # doctest: +SKIP
        >>> classify("A gripping film.")  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.99}]
    """
    if task not in _KINDS:
        raise BadInput.of_call(f"no pipeline {task!r}: there are {', '.join(_KINDS)}")
    server = _Server(url, timeout_s, tls, api_key)
    with server.understood():
        served = server.call("/v1/tasks", None)["tasks"]
        fitting = [name for name, about in served.items() if (about["reads_as"] or about["kind"]) in _KINDS[task]]
    if model is None and len(fitting) != 1:
        raise BadInput.of_call(f"name the task as `model`: {', '.join(fitting) or 'none'} can answer {task}")
    name = fitting[0] if model is None else model
    if name not in fitting:
        raise UnknownTask(f"no task {name!r} that can answer {task}. Served: {', '.join(fitting) or 'none'}")
    return (TokenClassificationPipeline if "tagging" in _KINDS[task] else TextClassificationPipeline)(server, name)


class _Server:
    """A front, asked over HTTP."""

    def __init__(self, url: str, timeout_s: float, tls: Tls | None, api_key: str | None) -> None:
        try:
            urllib.parse.urlsplit(url).port  # noqa: B018 - reading it checks it
            named = url.startswith(("http://", "https://"))
        except ValueError:
            named = False
        if not named:
            raise BadInput.of_call(f"url is {url!r}: give the front's address for HTTP, such as http://127.0.0.1:8000")
        if tls is not None and not url.startswith("https://"):
            raise BadInput.of_call(f"url is {url!r}, and tls was given: give an address that begins with https://")
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # a named server is not asked through the environment's http_proxy
            NoRedirect,
            *([_Https(tls)] if tls is not None else []),
        )
        self._timeout_s = check_timeout(timeout_s)
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            try:
                check_api_key(api_key, "api_key")
            except UserError as error:
                raise BadInput.of_call(str(error)) from None
            self._headers["authorization"] = f"Bearer {api_key}"

    def call(self, path: str, body: Any) -> Any:
        """Send a request and return the answer.

        Raises:
            OneTrunkError: There is none. See `pipeline`.
        """
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._url + path, data, self._headers)
        status, content = self._answer(request)
        if status is not None:
            raise _error_of(status, content)
        try:
            if len(content) > _MAX_ANSWER_BYTES:
                raise ValueError(f"more than {_MAX_ANSWER_BYTES:,} bytes")
            return json.loads(content)
        except ValueError as error:
            raise self._no_front(error) from None

    def _answer(self, request: urllib.request.Request) -> tuple[int | None, bytes]:
        """Return the status of an error, or None, and the body."""
        try:
            try:
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    return None, response.read(_MAX_ANSWER_BYTES + 1)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read(_MAX_ERROR_BYTES)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._url} did not answer within {self._timeout_s:g} s") from None
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise DeadlineExceeded(f"{self._url} did not answer within {self._timeout_s:g} s") from None
            if isinstance(reason, ssl.SSLError):
                raise TlsError(_tls_message(self._url, reason)) from None
            # A server that misses the client's certificate may close the connection after the handshake.
            ended = self._url.startswith("https:") and isinstance(reason, ConnectionError)
            hint = "; it may want a certificate of the client: tls=Tls(certificate=..., key=...)" if ended else ""
            raise NotReady(f"no server answers at {self._url}: {reason}{hint}") from None
        except (ValueError, http.client.HTTPException) as error:
            raise self._no_front(error) from None

    def _no_front(self, error: Exception) -> ServerError:
        what = str(error) or type(error).__name__
        return ServerError(f"{self._url} does not answer in JSON, so it is no OneTrunk front: {what}")

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """Turn what is missing in an answer into an error that says so.

        Raises:
            ServerError: The answer is not that of a OneTrunk front.
        """
        try:
            yield
        except OneTrunkError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ServerError(f"{self._url} answers otherwise than a OneTrunk front: {what:.200}") from None


class _Https(urllib.request.HTTPSHandler):
    """Opens connections with the settings of a `Tls`."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self._tls_context, self._server_name = tls.context("http/1.1"), tls.server_name

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a connection."""
        return self.do_open(self._connection, request)

    def _connection(self, host: str, **options: Any) -> _Connection:
        return _Connection(host, server_name=self._server_name, context=self._tls_context, **options)


class _Connection(http.client.HTTPSConnection):
    """A connection that expects another name in the certificate than the address's, if there is one."""

    def __init__(self, host: str, *, server_name: str | None, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(host, context=context, **options)
        self._tls_context, self._server_name = context, server_name

    def connect(self) -> None:
        """Connect, and check the certificate."""
        if self._server_name is None:
            super().connect()
            return
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls_context.wrap_socket(self.sock, server_hostname=self._server_name)


def _tls_message(url: str, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the server at {url} is not accepted ({error.verify_message}): give tls=Tls(ca=...)"
    return f"client and server at {url} do not agree on TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"


def _error_of(status: int, body: bytes) -> OneTrunkError:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with the status {status}"
    if status < 400:
        return ServerError(f"{message}, which sends to another address: give that one")
    if status == 401:
        return KeyRefused.of_call(f"{without_header(message)}: give one that it knows as api_key")
    if status == 404 and message.startswith("unknown task"):
        return UnknownTask(message)
    if status == 404:
        return ServerError(f"this is no OneTrunk front: {message}")
    if status in (429, 503):
        return NotReady(message)
    if status == 504:
        return DeadlineExceeded(message)
    return BadInput.of_call(message) if status < 500 else ServerError(message)


class _Pipeline:
    """One task on a server."""

    def __init__(self, server: _Server, model: str) -> None:
        self._server = server
        self.model = model

    def _records(self, inputs: Inputs) -> list[dict[str, Any]]:
        """Return what the task answers for each input."""
        rows = [inputs] if isinstance(inputs, str | Mapping) else list(inputs)
        texts, pairs = zip(*map(_row, rows), strict=True) if rows else ((), ())
        found: list[dict[str, Any]] = []
        for at in range(0, len(rows), _TEXTS_AT_ONCE):
            part = slice(at, at + _TEXTS_AT_ONCE)
            body = {"texts": texts[part], "pairs": pairs[part], "tasks": [self.model]}
            with self._server.understood():
                answers = self._server.call("/v1/predict", body)["answers"]
                found += [answer["predictions"][self.model] for answer in answers]
                if len(found) != at + len(texts[part]):
                    raise ValueError(f"{len(answers)} answers for {len(texts[part])} texts")
        return found


class TextClassificationPipeline(_Pipeline):
    """Labels of texts.

    Attributes:
        model: The task.
    """

    def __call__(self, inputs: Inputs, top_k: int | None = _DEFAULT) -> Any:
        """Return what transformers' pipeline of this name does.

        Args:
            inputs: A text; a pair, as ``{"text": ..., "text_pair": ...}``; or a list of either.
            top_k: How many labels come for each text, the likeliest first; None for all.

        Returns:
            Dicts with ``label`` and ``score``: a list with one for a text, one for a pair, and a list with one for each
            entry of a list. With ``top_k``, a list for each of them. The label of a number is ``LABEL_0``.

        Raises:
            BadInput: A text cannot be answered.
            NotReady: No server answers, or it is busy.
            DeadlineExceeded: The server did not answer in time.
            ServerError: The server failed.
        """
        ranked = [_labels(record) for record in self._records(inputs)]
        if top_k is _DEFAULT:
            best = [labels[0] for labels in ranked]
            return best[0] if isinstance(inputs, Mapping) else best
        cut = [labels[:top_k] for labels in ranked]
        return cut[0] if isinstance(inputs, str | Mapping) else cut


class TokenClassificationPipeline(_Pipeline):
    """Spans of texts.

    Attributes:
        model: The task.
    """

    def __call__(self, inputs: str | Sequence[str], aggregation_strategy: str = "simple") -> Any:
        """Return what transformers' pipeline of this name does, with whole words in place of tokens.

        Args:
            inputs: A text, or a list of texts.
            aggregation_strategy: ``simple`` for spans; ``none`` for each word that is in a span, with its tag.

        Returns:
            For a text, a list of dicts with ``entity_group`` (of a word ``entity`` and ``index``, counted from 1),
            ``score``, ``word``, ``start`` and ``end``; for a list of texts, a list of such lists.

        Raises:
            BadInput: A text cannot be answered, or there is no such strategy.
            NotReady: No server answers, or it is busy.
            DeadlineExceeded: The server did not answer in time.
            ServerError: The server failed.
        """
        if aggregation_strategy not in ("simple", "none"):
            raise BadInput.of_call(f"aggregation_strategy is {aggregation_strategy!r}: give 'simple' or 'none'")
        parts = _spans if aggregation_strategy == "simple" else _words
        found = [parts(record) for record in self._records(inputs)]
        return found[0] if isinstance(inputs, str) else found


def _row(row: Any) -> tuple[str, str | None]:
    """Return the text, and the second text or None.

    Raises:
        BadInput: It is neither a text nor a pair.
    """
    if isinstance(row, str):
        return row, None
    if isinstance(row, Mapping) and "text" in row and set(row) <= {"text", "text_pair"}:
        return row["text"], row.get("text_pair")
    raise BadInput.of_call(f'an input is {str(row)[:60]!r}: give a text, or {{"text": ..., "text_pair": ...}}')


def _labels(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = record.get("scores") or {"LABEL_0": record["score"]}
    return [{"label": label, "score": score} for label, score in scores.items()]


def _spans(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": span["type"],
            "score": span["score"],
            "word": span["text"],
            "start": span["start"],
            "end": span["end"],
        }
        for span in record["spans"]
    ]


def _words(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "entity": word["tag"],
            "score": word["score"],
            "index": index,
            "word": word["text"],
            "start": word["start"],
            "end": word["end"],
        }
        for index, word in enumerate(record["words"], start=1)
        if word["tag"] not in (None, "O")
    ]
