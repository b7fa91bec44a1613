"""An MLflow model registry, by its REST API: which version an alias names, and that version's files.

The registry's address is in ``MLFLOW_REGISTRY_URI`` or ``MLFLOW_TRACKING_URI``; ``MLFLOW_TRACKING_TOKEN``, or
``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``, open it. The package mlflow is not needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from onetrunk.protocol.command import printable
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.reading import open_regular
from onetrunk.protocol.redirects import NoRedirect

SCHEME = "models:/"
_MODEL = re.compile(r"models:/(?P<name>[\w.-]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>[0-9]+))", re.ASCII)
_TIMEOUT_S = 60.0
# For a whole answer, which may come in drops.
_ANSWER_TIMEOUT_S = 1800.0
_MAX_JSON_BYTES = 4 * 2**20
# Larger than any head; what a bundle may have exactly is checked when it is read.
_MAX_FILE_BYTES = 2**31
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class ModelName:
    """A model of a registry, and which version of it.

    Attributes:
        name: The model.
        alias: The alias; None if a version is named.
        version: The version; None if an alias is named.
    """

    name: str
    alias: str | None
    version: str | None


@dataclass(frozen=True)
class ModelVersion:
    """A version, as the registry tells it.

    Attributes:
        name: The model.
        version: The version's number.
        about: Who registered it, from which run, and when it was changed last, where the registry says so. Which user
            has set an alias, MLflow does not record.
    """

    name: str
    version: str
    about: Mapping[str, str]


def parse_model(text: str) -> ModelName:
    """Return the model that a text names.

    Raises:
        UserError: It names none.
    """
    found = _MODEL.fullmatch(text)
    if found is None:
        raise UserError(f"{text}: no model of a registry; give models:/NAME@ALIAS or models:/NAME/VERSION")
    return ModelName(found["name"], found["alias"], found["version"])


class Registry:
    """A registry behind an HTTP address."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Note the address.

        Args:
            url: The address of the server.
            headers: The headers of each request, such as one with a token.

        Raises:
            UserError: It is no address of a server.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(
                "MLFLOW_TRACKING_URI: allowed is http://HOST:PORT or https://HOST without a user in it; put them into "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        self.url = url.rstrip("/")
        self._headers = headers
        self._opener = urllib.request.build_opener(NoRedirect)

    @classmethod
    def from_environment(cls) -> Registry:
        """Return the registry that MLflow's own variables name.

        Raises:
            UserError: They name none.
        """
        url = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
        if not url:
            raise UserError("a model of a registry needs MLFLOW_TRACKING_URI: set it to the registry's http:// address")
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        headers = {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif user and password:
            headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        return cls(url, headers)

    @property
    def key(self) -> str:
        """A short name for the registry's files on this machine."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:8]

    def find(self, model: ModelName) -> ModelVersion:
        """Return the version that an alias names now, or that is named itself.

        Raises:
            UserError: There is no such model, alias or version.
            OneTrunkError: The registry does not answer, or refuses.
        """
        if model.alias is not None:
            found = self._ask("registered-models/alias", name=model.name, alias=model.alias)
        else:
            found = self._ask("model-versions/get", name=model.name, version=model.version or "")
        version = found.get("model_version")
        if not isinstance(version, dict) or not re.fullmatch(r"[0-9]+", str(version.get("version"))):
            raise OneTrunkError(f"{self.url}: the answer about {model.name} has no version: is it an MLflow server?")
        told = {"registered_by": version.get("user_id"), "run": version.get("run_id")}
        if isinstance(stamp := version.get("last_updated_timestamp"), int):
            with suppress(ValueError, OverflowError, OSError):  # a time of no calendar
                told["changed"] = datetime.fromtimestamp(stamp / 1000, timezone.utc).isoformat(timespec="seconds")
        about = {name: printable(str(value)[:200]).replace("\n", " ") for name, value in told.items() if value}
        return ModelVersion(model.name, str(version["version"]), about)

    def download(self, version: ModelVersion, names: Iterable[str], required: Collection[str], folder: Path) -> None:
        """Copy some of a version's files into a folder.

        Args:
            version: The version.
            names: The files.
            required: Those of them that must be there.
            folder: The folder.

        Raises:
            UserError: A required file is missing, or the files are in a store that is not read here.
            OneTrunkError: The registry does not answer, or refuses.
        """
        uri = self._ask("model-versions/get-download-uri", name=version.name, version=version.version)
        place = str(uri.get("artifact_uri", ""))
        parts = urlsplit(place)
        for name in names:
            if parts.scheme == "mlflow-artifacts":
                path = quote(f"{unquote(parts.path).strip('/')}/{name}")
                there = self._fetch(f"/api/2.0/mlflow-artifacts/artifacts/{path}", folder / name)
            elif parts.scheme in ("", "file") and parts.path.startswith("/"):
                there = _copy(Path(unquote(parts.path)), name, folder / name)
            else:
                raise UserError(
                    f"models:/{version.name}/{version.version}: its files are in {parts.scheme or place!r}, and those "
                    "are read that the server passes on (mlflow-artifacts:) or that are in a folder here"
                )
            if not there and name in required:
                raise UserError(
                    f"models:/{version.name}/{version.version}: found no {name} among its files, so it is no bundle: "
                    "register the folder that train-head wrote"
                )

    def _ask(self, what: str, **query: str) -> dict[str, Any]:
        path = f"/api/2.0/mlflow/{what}?{urlencode(query)}"
        try:
            with self._open(path) as response:
                found = json.loads(b"".join(_blocks(response, _MAX_JSON_BYTES)))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                named = ", ".join(f"{name} {value}" for name, value in query.items())
                raise UserError(f"{self.url}: the registry has no {named}") from None
            raise OneTrunkError(f"{self.url}: the registry refuses with status {error.code}") from None
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise OneTrunkError(f"{self.url}: the registry does not answer: {error!s:.200}") from None
        if not isinstance(found, dict):
            raise OneTrunkError(f"{self.url}: the answer is no object: is it an MLflow server?")
        return found

    def _fetch(self, path: str, target: Path) -> bool:
        """Copy a file; return whether there is one."""
        try:
            with self._open(path) as response, target.open("wb") as stream:
                for block in _blocks(response, _MAX_FILE_BYTES):
                    stream.write(block)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise OneTrunkError(f"{self.url}: the registry refuses a file with status {error.code}") from None
        except (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException, ValueError) as error:
            raise OneTrunkError(f"{self.url}: {target.name} was not received: {error!s:.200}") from None
        return True

    def _open(self, path: str) -> Any:
        return self._opener.open(
            urllib.request.Request(f"{self.url}{path}", headers=dict(self._headers)), timeout=_TIMEOUT_S
        )


def _blocks(response: Any, most: int) -> Iterator[bytes]:
    """Yield an answer's body.

    Raises:
        ValueError: It is larger than it may be, takes too long, or ends before it is whole.
    """
    length, received, until = response.headers.get("Content-Length"), 0, time.monotonic() + _ANSWER_TIMEOUT_S
    while block := response.read1(_BLOCK_BYTES):
        received += len(block)
        if received > most:
            raise ValueError(f"it is larger than {most:,} bytes")
        if time.monotonic() > until:
            raise ValueError(f"it is not whole after {_ANSWER_TIMEOUT_S:,.0f} s")
        yield block
    if length is not None and length.isdecimal() and received < int(length):
        raise ValueError(f"it ended after {received:,} of {int(length):,} bytes")


def _copy(folder: Path, name: str, target: Path) -> bool:
    """Copy a file of a folder of this machine; return whether there is one."""
    try:
        with (
            open_regular(folder / name, max_bytes=_MAX_FILE_BYTES, inside=folder) as source,
            target.open("wb") as stream,
        ):
            shutil.copyfileobj(source, stream)
    except FileNotFoundError:
        return False
    return True
