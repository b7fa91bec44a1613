"""What the launcher asks of a running Triton over gRPC: an answer, the models' state, a reload."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from onetrunk.protocol.errors import ServerError
from onetrunk.protocol.names import ENSEMBLES, INPUT_IDS, TEXT
from onetrunk.serving.command import LOAD_TIMEOUT_S, admin_headers

log = logging.getLogger(__name__)

# gRPC waits a second between two tries to connect by default; a server that starts in one second should not.
# Connections of its own: gRPC shares them between a process's clients, and with them the pause after a refused one. A
# client that asks for a server while it starts would make the launcher's first question fail too.
CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
]
REVIVED = "onetrunk_revived"


class NoAnswerError(ServerError):
    """Triton is up, but a request for all outputs got no sane answer."""


class Control:
    """A gRPC connection to the server that this process runs."""

    def __init__(self, url: str, admin_key: str | None) -> None:
        self._client = InferenceServerClient(url, channel_args=CHANNEL)
        self._headers = admin_headers(admin_key)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def ask_for_everything(self, timeout_s: float) -> None:
        """Asks both ensembles for all of their outputs.

        Raises:
            NoAnswerError: No answer, an output is missing, or a number in it is not finite.
        """
        text = InferInput(TEXT, [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"Ready?"]], dtype=np.object_))
        ids = InferInput(INPUT_IDS, [1, 2], "INT64")
        ids.set_data_from_numpy(np.zeros((1, 2), dtype=np.int64))
        for ensemble, tensor in zip(ENSEMBLES, (text, ids), strict=True):
            try:
                outputs = self._config(ensemble)["output"]
                answer = self._client.infer(ensemble, [tensor], client_timeout=timeout_s)
            except InferenceServerException as error:
                raise NoAnswerError(f"{ensemble} gives no answer: {error.message()}") from None
            for output in outputs:
                value = answer.as_numpy(output["name"])
                if value is None or value.size == 0 or not np.isfinite(value).all():
                    raise NoAnswerError(f"{ensemble} answers {output['name']} with {value}, not with finite numbers")

    def answers_given(self) -> int:
        """How many requests the ensembles have answered well since they were loaded."""
        total = 0
        for ensemble in ENSEMBLES:
            statistics = self._client.get_inference_statistics(ensemble, as_json=True, client_timeout=5)
            for version in statistics.get("model_stats", []):
                total += int(version["inference_stats"].get("success", {}).get("count", 0))
        return total

    def is_loaded(self, model: str, version: int) -> bool:
        """Whether Triton means to serve this version: true also where its process is dead."""
        index = self._client.get_model_repository_index(headers=self._headers, as_json=True, client_timeout=5)
        return any(
            entry["name"] == model and entry.get("version") == str(version) and entry.get("state") == "READY"
            for entry in index.get("models", [])
        )

    def reload(self, model: str, count: int) -> None:
        """Loads a model anew, though its files are unchanged, so that it gets a new process.

        Triton ignores a load of what it takes to be loaded already. A config that comes with the request and differs
        in a parameter makes it load; nothing on disk is touched, so this works on a read-only repository. The next
        load without such a config reads the files again. The ensembles stay up meanwhile.

        Args:
            model: The model's name.
            count: A number not used for this model before.
        """
        config = self._config(model)
        config.setdefault("parameters", {})[REVIVED] = {"string_value": str(count)}
        self._client.load_model(model, headers=self._headers, config=json.dumps(config), client_timeout=LOAD_TIMEOUT_S)

    def _config(self, model: str) -> dict[str, Any]:
        config = self._client.get_model_config(model, client_timeout=5).config
        return dict(json_format.MessageToDict(config, preserving_proto_field_name=True))
